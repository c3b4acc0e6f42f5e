package remote

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// FuzzDir has anything for the name and content of a file, and for the meta
// file: nothing of it panics, and only names that the queue writes count.
func FuzzDir(f *testing.F) {
	f.Add("01795371566036968583-0000000006-10.zst", []byte(`{"endpoint":"http://h/","encoder":"zipkin","observer_uuid":"u"}`))
	f.Add(".tmp-01795371566036968583-0000000006-10.zst", []byte("{"))
	f.Add("99999999999999999999-0-1.zst", []byte("(\xb5/\xfd\x04\x00\xff\xff\xff\xff"))
	spool := NewSpool(0)
	f.Add("x", spool.compress([]byte("[]")))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		if fr := parseName(name); fr != nil && (fr.name() != name || fr.spans <= 0 || fr.spans > maxFrameSpans) {
			t.Fatalf("%q: %+v", name, fr)
		}
		if b, err := spool.decompress(content); err == nil && (len(b) == 0 || len(b) > maxFrame) {
			t.Fatalf("%d bytes", len(b))
		}
		dir := t.TempDir()
		if strings.ContainsAny(name, "/\x00") || len(name) > 200 || os.WriteFile(filepath.Join(dir, "q"+name), content, 0o600) != nil {
			return
		}
		if err := os.WriteFile(filepath.Join(dir, metaName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := loadMeta(dir); err == nil && m.Endpoint == "" {
			t.Fatalf("%+v", m)
		}
		if frames, err := scan(dir); err != nil || len(frames) != 0 {
			t.Fatal(frames, err)
		}
	})
}

// FuzzAnswer has anything for what a receiver says.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x1b[31m no\u202eentry\r\n"), "120", "http://u:p@h/")
	f.Add([]byte(strings.Repeat("ü ", 500)), "Sun, 06 Nov 2094 08:49:37 GMT", "%zz")
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, text []byte, after, loc string) {
		s := clean(text)
		if len(s) > maxSaid || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q", s)
		}
		h := http.Header{"Retry-After": {after}, "Location": {loc}}
		if d := retryAfter(h, now); d < 0 {
			t.Fatal(d)
		}
		location(h)
	})
}
