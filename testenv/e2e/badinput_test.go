package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// TestBadInput gives the toolstack, and so the agent, what no good client sends.
// Each is counted or shown as an error, and calls made beside and after it are
// traced as ever.
func TestBadInput(t *testing.T) {
	l := newLab(t, testenv.Options{Knobs: testenv.Knobs{Verbose: true}})
	l.observe()
	session := l.session()
	ctx := context.Background()
	n := 0
	// good makes a call with a trace id of its own and looks for its span.
	good := func(t *testing.T) {
		t.Helper()
		l.t = t
		n++
		id := fmt.Sprintf("%032x", 0xfeed0000+n)
		o := client.Options{Shape: client.Node, Traceparent: "00-" + id + "-00f067aa0ba902b7-01"}
		_, err := l.dial("unix", o).Call(ctx, "VM.get_all", session)
		qt.Assert(t, qt.IsNil(err))
		l.wait("has traced the call", func(*control.Status) bool {
			for _, s := range l.spansSoFar() {
				if s.TraceID == id && s.Name == "VM.get_all" && s.Incomplete() == "" {
					return true
				}
			}
			return false
		})
	}
	raw := func(t *testing.T, transport string, pieces ...[]byte) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, _ = l.dial(transport, client.Options{}).Raw(ctx, pieces...) // xapi may hang up in the middle
	}
	garbage := make([]byte, 64<<10)
	for i := range garbage {
		garbage[i] = byte(i * 7919 >> 3)
	}
	head := func(length int) string {
		return fmt.Sprintf("POST /jsonrpc HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n", length)
	}

	for _, transport := range []string{"unix", "tcp"} {
		t.Run("header of 100 KiB over "+transport, func(t *testing.T) {
			before := l.status().Engine
			raw(t, transport, []byte("POST / HTTP/1.1\r\nx-long: "+strings.Repeat("a", 100<<10)+"\r\ncontent-length: 0\r\n\r\n"))
			good(t)
			l.noticed(before)
		})
		t.Run("binary garbage over "+transport, func(t *testing.T) {
			before := l.status().Engine
			raw(t, transport, garbage)
			good(t)
			l.noticed(before)
		})
		t.Run("garbage in a body over "+transport, func(t *testing.T) {
			raw(t, transport, []byte(head(len(garbage))), garbage)
			good(t)
		})
		t.Run("half a JSON envelope over "+transport, func(t *testing.T) {
			body := `{"jsonrpc":"2.0","id":1,"method":"VM.get_all","params":["OpaqueRef:`
			raw(t, transport, []byte(head(len(body)+500)+body))
			raw(t, transport, []byte(head(len(body))+body))
			good(t)
		})
	}
	t.Run("a header that never ends", func(t *testing.T) {
		c, err := net.Dial("unix", l.dom0.XapiSocket())
		qt.Assert(t, qt.IsNil(err))
		defer c.Close()
		_, err = io.WriteString(c, "POST / HTTP/1.1\r\nhost: ")
		qt.Assert(t, qt.IsNil(err))
		for i := range 100 {
			if _, err = io.WriteString(c, "drip"); err != nil {
				break // xapi has had enough
			}
			if i == 50 {
				good(t)
			}
		}
		good(t)
	})
	t.Run("half a JSON envelope through the switch", func(t *testing.T) {
		c, err := net.Dial("unix", l.dom0.Path("/run/message-switch/sock") /* /var/run is a link that would lead out of the dom0 */)
		qt.Assert(t, qt.IsNil(err))
		defer c.Close()
		qt.Assert(t, qt.IsNil(c.SetDeadline(time.Now().Add(5*time.Second))))
		for _, body := range []string{`{"method":"VM.start","params":[{"id":"`, `{"method":"` + strings.Repeat(`\\\\\\\"`, 2000), "\x00\xff\xfe", strings.Repeat("[", 10_000)} {
			_, err = fmt.Fprintf(c, "POST /request/org.xen.xapi.xenops.classic/nobody:1 HTTP/1.1\r\nuser-agent: cohttp\r\ncontent-length: %d\r\nconnection: keep-alive\r\nhost: localhost\r\n\r\n%s", len(body), body)
			qt.Assert(t, qt.IsNil(err))
		}
		_, _ = c.Read(make([]byte, 4096)) // whatever the switch says
		good(t)
	})
	t.Run("a log line of 64 KiB", func(t *testing.T) {
		before := l.status().Events["log"]
		// Verbose xapi logs the user agent. It cuts what is too long for a header,
		// so the method's name carries it.
		_, err := l.dial("unix", client.Options{Shape: client.Node}).Call(ctx, "x."+strings.Repeat("y", 64<<10))
		qt.Check(t, qt.IsTrue(err != nil))
		good(t)
		qt.Assert(t, qt.IsTrue(l.status().Events["log"] > before))
	})
	t.Run("bad Observer files", func(t *testing.T) {
		for name, content := range map[string]string{
			"unknown.json":   `{"name_label":"a","colour":"red"}`,
			"types.json":     `{"name_label":7,"enabled":"yes","endpoints":"bugtool"}`,
			"endpoint.json":  `{"name_label":"a","endpoints":["ftp://x"]}`,
			"attribute.json": `{"name_label":"a","attributes":{"Bad-Key":"v"}}`,
			"half.json":      `{"name_label":`,
			"binary.json":    "\x00\x01\x02",
		} {
			path := filepath.Join(l.agent.ObserversDir(), name)
			qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(content), 0o600)))
		}
		within(t, "mistakes shown", func() bool { return len(l.status().Mistakes) == 6 })
		for _, m := range l.status().Mistakes {
			t.Logf("%s: %s", filepath.Base(m.File), m.Error)
			qt.Check(t, qt.Not(qt.Equals(m.Error, "")))
		}
		good(t)
		_, err := l.agent.Run(ctx, "observer", "list")
		qt.Assert(t, qt.ErrorMatches(err, `(?s).*half\.json.*`))
	})
	l.t = t
	s := l.status()
	qt.Assert(t, qt.Equals(s.Missing, 0))
	qt.Assert(t, qt.Equals(s.Handover.Dropped, 0))
	shown, err := json.Marshal(s.Engine)
	qt.Assert(t, qt.IsNil(err))
	t.Logf("%s", shown)
}

// noticed asserts that the engine counted something bad since before, or made a
// span of the request that tells how the server refused it.
func (l *lab) noticed(before correlate.Stats) {
	l.t.Helper()
	now := l.status().Engine
	bad := func(s correlate.Stats) uint64 { return s.BadHeads + s.BadMessages + s.UnreadBodies + s.NoRequest }
	refused := 0
	for _, s := range l.spansSoFar() {
		if code := s.Tags["http.response.status_code"]; strings.HasPrefix(code, "4") || strings.HasPrefix(code, "5") {
			refused++
		}
	}
	l.t.Logf("%d counted as bad, %d spans of refused requests so far", bad(now)-bad(before), refused)
	qt.Assert(l.t, qt.IsTrue(bad(now) > bad(before) || refused > 0))
}
