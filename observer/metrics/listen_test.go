package metrics

import (
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/observer/export"
)

func TestServeUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dtagent", "metrics.sock")
	ln, err := Listen("unix:" + path)
	qt.Assert(t, qt.IsNil(err))
	for p, mode := range map[string]fs.FileMode{path: fs.ModeSocket | 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		info, err := os.Lstat(p)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(info.Mode(), mode))
	}
	r := New(Options{})
	e := open(t, r, ring, OTLP{})
	_ = e.Export(context.Background(), []*export.Record{record("xapi", "VM.start", trace.SpanKindServer, 1, "", 1)})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Serve(ctx, ln) }()

	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, string) {
		resp, err := client.Get("http://dtagent" + path)
		qt.Assert(t, qt.IsNil(err))
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		qt.Assert(t, qt.IsNil(err))
		return resp.StatusCode, string(b)
	}
	code, body := get("/metrics")
	qt.Check(t, qt.Equals(code, 200))
	qt.Check(t, qt.StringContains(body, `span_name="VM.start"`))
	code, _ = get("/")
	qt.Check(t, qt.Equals(code, 404))
	_, err = Listen("unix:" + path)
	qt.Check(t, qt.ErrorMatches(err, `metrics address .*: another process answers there already`))

	stop()
	qt.Check(t, qt.IsNil(<-done))
	_, err = os.Lstat(path)
	qt.Check(t, qt.ErrorIs(err, fs.ErrNotExist))
}

// TestListenAfterKill: a socket that a killed agent left is replaced, a file is
// not.
func TestListenAfterKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	qt.Assert(t, qt.IsNil(err))
	old.SetUnlinkOnClose(false)
	old.Close()
	ln, err := Listen("unix:" + path)
	qt.Assert(t, qt.IsNil(err))
	ln.Close()
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("mine"), 0o600)))
	_, err = Listen("unix:" + path)
	qt.Check(t, qt.ErrorMatches(err, ".*no socket"))
}

func TestListenLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "127.1.2.3:0", "[::1]:0"} {
		ln, err := Listen(addr)
		if err != nil && addr == "[::1]:0" && strings.Contains(err.Error(), "cannot assign requested address") {
			continue // no IPv6 here
		}
		qt.Assert(t, qt.IsNil(err))
		ln.Close()
	}
	for addr, says := range map[string]string{
		"0.0.0.0:9464": "not a loopback address", "[::]:9464": "not a loopback address", "10.0.0.1:9464": "not a loopback address",
		"[::ffff:10.0.0.1]:9464": "not a loopback address", ":9464": "write unix:", "localhost:9464": "write unix:", "127.0.0.1": "write unix:",
		"": "write unix:", "unix:": "must begin with /", "unix:rel/ative": "must begin with /",
	} {
		_, err := Listen(addr)
		qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%s", addr))
		qt.Check(t, qt.StringContains(err.Error(), says))
	}
}
