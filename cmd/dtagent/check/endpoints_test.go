package check

import (
	"compress/gzip"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
)

// receiver is an HTTP server that answers with code, and counts requests and the
// bytes in them.
type receiver struct {
	*httptest.Server
	requests, bytes atomic.Int64
}

func newReceiver(t testing.TB, code int, tls bool) *receiver {
	r := &receiver{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var body io.Reader = req.Body
		if req.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(req.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			body = z
		}
		b, _ := io.ReadAll(body)
		r.requests.Add(1)
		r.bytes.Add(int64(len(b)))
		if u, p, ok := req.BasicAuth(); ok && u+p != "uhunter2" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(code)
	})
	if tls {
		r.Server = httptest.NewUnstartedServer(handler)
		r.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that clients break off
		r.StartTLS()
	} else {
		r.Server = httptest.NewServer(handler)
	}
	t.Cleanup(r.Close)
	return r
}

func TestAsk(t *testing.T) {
	look := func(endpoint string) Item { return ask(context.Background(), &asked{endpoint: endpoint}, "", "v1") }
	good := newReceiver(t, http.StatusAccepted, false)
	qt.Check(t, qt.DeepEquals(look(good.URL+"/api/v2/spans"), works(good.URL+"/api/v2/spans", "took an empty list of spans")))
	qt.Check(t, qt.Equals(good.bytes.Load(), 2)) // "[]"
	qt.Check(t, qt.Equals(look("otlp+"+good.URL).Detail, "took a request without spans"))
	qt.Check(t, qt.Equals(good.bytes.Load(), 2)) // and nothing
	qt.Check(t, qt.Equals(good.requests.Load(), 2))

	i := look(strings.Replace(good.URL, "//", "//u:hunter2@", 1))
	qt.Check(t, qt.Equals(i.State, Works))
	qt.Check(t, qt.StringContains(i.Name, "//u:xxxxx@"))
	i = look(strings.Replace(good.URL, "//", "//u:wrong@", 1))
	qt.Check(t, qt.Equals(i.State, Fails))
	qt.Check(t, qt.StringContains(i.Why, "401 Unauthorized"))
	qt.Check(t, qt.IsFalse(strings.Contains(i.Name+i.Why+i.Advice, "wrong@")))
	for _, e := range []string{good.URL, "http://127.0.0.1:1", "http://127.0.0.1:x", "ftp://h"} {
		i = look(e + "/?token=CANARY&X-Amz-Signature=CANARY#CANARY")
		qt.Check(t, qt.Equals(i.State == Works, e == good.URL))
		qt.Check(t, qt.StringContains(i.Name, "?token=xxxxx&X-Amz-Signature=xxxxx"))
		qt.Check(t, qt.IsFalse(strings.Contains(i.Name+i.Detail+i.Why+i.Advice, "CANARY")))
	}

	for code, want := range map[int]struct {
		state  State
		advice string
	}{
		http.StatusBadRequest: {Unknown, "see whether spans arrive"}, http.StatusNotFound: {Fails, "/api/v2/spans"},
		http.StatusForbidden: {Fails, "user and password"}, http.StatusServiceUnavailable: {Fails, "wrong with the receiver"},
		http.StatusFound: {Fails, "firewalls"},
	} {
		i := look(newReceiver(t, code, false).URL)
		qt.Check(t, qt.Equals(i.State, want.state), qt.Commentf("%d", code))
		if code != http.StatusFound {
			qt.Check(t, qt.StringContains(i.Advice, want.advice))
		}
		qt.Check(t, qt.Matches(i.Why, `(it )?answered .*`))
	}

	i = look(newReceiver(t, http.StatusAccepted, true).URL)
	qt.Check(t, qt.Equals(i.State, Fails))
	qt.Check(t, qt.StringContains(i.Advice, "--ca-file"))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	addr := l.Addr().String()
	qt.Assert(t, qt.IsNil(l.Close()))
	i = look("http://" + addr)
	qt.Check(t, qt.Equals(i.State, Fails))
	qt.Check(t, qt.StringContains(i.Why, "connection refused"))
	qt.Check(t, qt.StringContains(i.Advice, "spans wait in a queue"))
}

// A receiver that takes the connection and says nothing is waited for as long as the
// caller has time.
func TestAskMute(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		if c, err := l.Accept(); err == nil {
			cancel(context.DeadlineExceeded)
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	i := ask(ctx, &asked{endpoint: "http://" + l.Addr().String()}, "", "v1")
	qt.Check(t, qt.Equals(i.State, Fails))
	qt.Check(t, qt.StringContains(i.Why, "no answer within"))
}

func TestEndpoints(t *testing.T) {
	dir := t.TempDir()
	good := newReceiver(t, http.StatusAccepted, false)
	of := func(uuid string, enabled bool, attributes map[string]string, endpoints ...string) Observer {
		return observerOf(sourceLocal, observer.Observer{UUID: uuid, Enabled: enabled, Endpoints: endpoints, Attributes: attributes}, "")
	}
	c := checker{o: Options{BugtoolDir: dir, SpanLog: filepath.Join(dir, "x", "spans")}}
	obs := []Observer{
		of("a", true, nil, "bugtool", good.URL),
		of("b", true, map[string]string{"dtagent.logs": "true"}, good.URL),
		of("c", false, nil, good.URL+"/other"), // disabled
	}
	got := c.endpoints(context.Background(), obs)
	qt.Assert(t, qt.HasLen(got, 3))
	qt.Check(t, qt.Equals(got[0].Endpoint, "bugtool"))
	qt.Check(t, qt.DeepEquals(got[1].Observers, []string{"a", "b"}))
	qt.Check(t, qt.Equals(got[1].State, Works))
	qt.Check(t, qt.Equals(got[2].Endpoint, "logs"))
	qt.Check(t, qt.StringContains(got[2].Detail, "made when needed"))
	qt.Check(t, qt.Equals(good.requests.Load(), 1))

	c.o.Offline = true
	got = c.endpoints(context.Background(), obs)
	qt.Check(t, qt.Equals(got[1].State, Unknown))
	qt.Check(t, qt.Equals(good.requests.Load(), 1))
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	qt.Check(t, qt.Equals(directory("d", dir, 0).State, Works))
	i := directory("d", filepath.Join(dir, "a", "b"), 0)
	qt.Check(t, qt.Equals(i.State, Works))
	qt.Check(t, qt.StringContains(i.Detail, "made when needed"))
	i = directory("d", dir, 1<<62)
	qt.Check(t, qt.Equals(i.State, Wider))
	qt.Check(t, qt.StringContains(i.Why, "are free"))
	file := filepath.Join(dir, "file")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, nil, 0o600)))
	qt.Check(t, qt.StringContains(directory("d", file, 0).Why, "is no directory"))
	qt.Check(t, qt.Equals(directory("d", filepath.Join(file, "x"), 0).State, Fails))
	qt.Check(t, qt.Equals(directory("d", "/proc/sys/dtagent", 0).State == Works, false))
	_, err := os.Stat(filepath.Join(dir, "a"))
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}
