package recordings

import (
	"bytes"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/replay"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/recording"
)

var update = flag.Bool("update", false, "rewrite what comes of the recordings")

// names are those of the recordings.
func names(t testing.TB) []string {
	t.Helper()
	all, err := fs.Glob(FS, "*.dtrec")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsTrue(len(all) >= 3))
	return all
}

func open(t testing.TB, name string) *recording.Reader {
	t.Helper()
	b, err := FS.ReadFile(name)
	qt.Assert(t, qt.IsNil(err))
	r, err := recording.NewReader(bytes.NewReader(b))
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(r.Close)
	return r
}

// TestGolden compares what comes of the recordings with what stands beside them.
func TestGolden(t *testing.T) {
	for _, name := range names(t) {
		t.Run(name, func(t *testing.T) {
			var spans []zipkin.Span
			r := open(t, name)
			sum, err := replay.Run(t.Context(), r, replay.Options{Emit: func(s *correlate.Span) { spans = append(spans, zipkin.FromSpan(s)) }})
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals(sum.Torn, ""))
			qt.Assert(t, qt.Equals(sum.Lost+sum.Missing, 0))
			qt.Assert(t, qt.Equals(sum.Spans, uint64(len(spans))))
			qt.Assert(t, qt.DeepEquals(r.Trailer().Totals, r.Totals()))
			qt.Assert(t, qt.StringContains(r.Header().Note, "simulated"))

			got := shape(spans)
			path := strings.TrimSuffix(name, ".dtrec") + ".txt"
			if *update {
				qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(got), 0o644)))
			}
			want, err := os.ReadFile(path)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals(got, string(want)))
		})
	}
}

// canary is in every secret that was sent while the recordings were made.
const canary = "CANARY"

// reference is a whole reference, such as that of a session. Of some, XAPI's log has
// the first digits, which name the task.
var reference = regexp.MustCompile(`OpaqueRef:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// unpacked are all bytes of a recording's events.
func unpacked(t testing.TB, r *recording.Reader) []byte {
	t.Helper()
	var all bytes.Buffer
	w, err := recording.NewWriter(&all, r.Header(), false)
	qt.Assert(t, qt.IsNil(err))
	var b recording.Block
	for err = r.ReadBlock(&b); err == nil; err = r.ReadBlock(&b) {
		qt.Assert(t, qt.IsNil(w.Block(&b)))
	}
	qt.Assert(t, qt.Equals(err, io.EOF))
	return all.Bytes()
}

// TestNoSecrets looks for secrets in the recordings.
func TestNoSecrets(t *testing.T) {
	for _, name := range names(t) {
		b := unpacked(t, open(t, name))
		qt.Check(t, qt.IsTrue(bytes.Contains(b, []byte("session.login_with_password"))), qt.Commentf("%s", name)) // it is legible
		if i := bytes.Index(b, []byte(canary)); i >= 0 {
			t.Errorf("%s holds a secret: …%q…", name, b[max(0, i-100):i+50])
		}
		if at := reference.FindIndex(b); at != nil {
			t.Errorf("%s holds a reference: …%q…", name, b[max(0, at[0]-100):at[1]])
		}
	}
}

// TestTwice plays each recording twice, and compares the files byte for byte.
func TestTwice(t *testing.T) {
	for _, name := range names(t) {
		var files [2]map[string]string
		for i := range files {
			dir, r := filepath.Join(t.TempDir(), "spans"), open(t, name)
			out, err := replay.NewFiles(dir, r.Header())
			qt.Assert(t, qt.IsNil(err))
			sum, err := replay.Run(t.Context(), r, replay.Options{Emit: out.Span, Tick: out.Tick})
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsNil(out.Close()))
			qt.Assert(t, qt.IsTrue(sum.Spans > 0))
			files[i] = contents(t, dir)
		}
		qt.Assert(t, qt.IsTrue(len(files[0]) > 0))
		qt.Assert(t, qt.DeepEquals(files[0], files[1]))
	}
}

// contents are the files of a directory by name.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		qt.Assert(t, qt.IsNil(err))
		out[e.Name()] = string(b)
	}
	return out
}
