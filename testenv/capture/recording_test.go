package capture

import (
	"bytes"
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

// TestFixturesHoldNoSecrets looks at the text of the fixtures and at what the
// pieces of each connection give when they are put together.
func TestFixturesHoldNoSecrets(t *testing.T) {
	// Each begins with a literal, so that the search is quick; the text is in
	// lower case.
	var secrets []*regexp.Regexp
	for _, re := range []string{
		`opaqueref:[0-9a-f-]{15}`, // a task's 8-4 and a dash are 14
		`password=[^(x]`, `passwd=[^(x]`,
		`session_id[=:] *[^x( ]`, `pool_secret[=:] *[^x( ]`, `pool_token[=:] *[^x( ]`,
		`\ncookie: [^x]`, `\nauthorization: [^x]`,
		`session\.[a-z_]*login[a-z_]*</methodname>(\n|\\n)?<params>(</?[a-z]+>|\n|\\n|<string>x*</string>)*<string>[^x<]`,
		`"session\.[a-z_]*login[a-z_]*", ?"params": ?\["[^x"]`,
	} {
		secrets = append(secrets, regexp.MustCompile(re))
	}
	look := func(what string, b []byte) {
		b = bytes.ToLower(b)
		for _, re := range secrets {
			if m := re.Find(b); m != nil {
				t.Errorf("%s: %q", what, m)
			}
		}
	}
	d, err := zstd.NewReader(nil)
	qt.Assert(t, qt.IsNil(err))
	defer d.Close()
	files, err := fs.ReadDir(testdata, "testdata")
	qt.Assert(t, qt.IsNil(err))
	for _, f := range files {
		b, err := testdata.ReadFile("testdata/" + f.Name())
		qt.Assert(t, qt.IsNil(err))
		if strings.HasSuffix(f.Name(), ".zst") {
			b, err = d.DecodeAll(b, nil)
			qt.Assert(t, qt.IsNil(err))
		}
		look(f.Name(), b)
	}
	for _, name := range Names() {
		r, err := Load(name)
		qt.Assert(t, qt.IsNil(err))
		for _, p := range payloads(r.Records, r.Processes.Threads) {
			look(name, p.data)
		}
		for _, e := range Convert(r.Records, r.Processes).Events {
			look(name, append(e.Head, e.Tail...))
		}
	}
}

// TestEventsOfRecordings counts what must come out of the recordings.
func TestEventsOfRecordings(t *testing.T) {
	for _, test := range []struct {
		name     string
		accepted int // accept4 calls of xapi that returned
		logs     int // sendto calls
	}{
		{"lifecycle-off", 14, 583},
		{"lifecycle-on", 13, 563},
		{"lifecycle-three", 28, 1213},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := Load(test.name)
			qt.Assert(t, qt.IsNil(err))
			c := Convert(r.Records, r.Processes)
			qt.Check(t, qt.Equals(c.Orphans, 0))
			qt.Check(t, qt.HasLen(c.Unknown, 0))
			kinds := make(map[event.Kind]int)
			var accepted, small int
			last := event.Time(0)
			for _, e := range c.Events {
				qt.Assert(t, qt.IsTrue(e.Time > last))
				last = e.Time
				kinds[e.Kind]++
				if e.Kind == event.KindOpen && e.How == event.Accepted {
					accepted++
					qt.Check(t, qt.Equals(e.Listener, "/var/lib/xcp/xapi"))
				}
				if e.Kind == event.KindData && e.Dir == event.In && e.Calls > 1 {
					small++
					if string(e.Head[:min(len(e.Head), 27)]) == "XenSource thin CLI protocol" {
						continue // and two numbers, in three reads
					}
					if !bytes.HasPrefix(e.Head, []byte("POST /")) || !bytes.HasSuffix(e.Head, []byte("\r\n\r\n")) {
						t.Errorf("a gathered run is not one request header: %q", e.Head)
					}
				}
			}
			var logs, accepts int
			for _, rec := range r.Records {
				if rec.Kind != strace.Exit {
					continue
				}
				switch rec.Call.Name {
				case "sendto":
					logs++
				case "accept4":
					accepts++
				}
			}
			qt.Check(t, qt.Equals(kinds[event.KindLog], logs))
			qt.Check(t, qt.Equals(accepted, accepts))
			qt.Check(t, qt.Equals(kinds[event.KindLog], test.logs))
			qt.Check(t, qt.Equals(accepted, test.accepted))
			t.Logf("%d records of strace, %d events, %d data, %d gathered headers", len(r.Records), len(c.Events), kinds[event.KindData], small)
		})
	}
}

func TestClients(t *testing.T) {
	r, err := Load("lifecycle-three")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(r.Clients, 4))
	qt.Assert(t, qt.Equals(r.Clients[1].TraceID, "2a0a2978ccf994391855a9250dd864f7"))
	qt.Assert(t, qt.HasLen(r.Clients[0].Calls, 8))
	qt.Assert(t, qt.HasLen(r.Clients[2].Lines, 41))
}

// TestCuttingAgainChangesNothing proves that what Cut writes can be read, and
// that nothing is left in the fixtures that it would mask or leave out.
func TestCuttingAgainChangesNothing(t *testing.T) {
	for _, name := range Names() {
		r, err := Load(name)
		qt.Assert(t, qt.IsNil(err))
		want, err := unpack(name + ".strace.zst")
		qt.Assert(t, qt.IsNil(err))
		var got bytes.Buffer
		_, err = Cut(&got, r.Records, r.Processes)
		qt.Assert(t, qt.IsNil(err))
		gotLines, wantLines := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
		qt.Assert(t, qt.HasLen(gotLines, len(wantLines)))
		for i := range gotLines {
			qt.Assert(t, qt.Equals(gotLines[i], wantLines[i]))
		}
		fds, err := testdata.ReadFile("testdata/" + name + ".fds")
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(string(r.Processes.Targets()), string(fds)))
		qt.Assert(t, qt.Equals(CutStrings(r.Records), 0))
	}
}
