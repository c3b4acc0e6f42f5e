package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/zipkin"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

func newClient(t testing.TB, url string, enc Encoder, o ClientOptions) *Client {
	t.Helper()
	c, err := NewClient(url, enc, o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(c.Close)
	return c
}

func TestAnswers(t *testing.T) {
	soon := time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
	}
	after := func(code int, v string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", v)
			w.WriteHeader(code)
		}
	}
	for _, c := range []struct {
		name     string
		handle   http.HandlerFunc
		retry    bool
		min, max time.Duration // of After
		cause    export.Cause
		ok       bool
		says     string
	}{
		{name: "200", handle: status(200), ok: true},
		{name: "202", handle: status(202), ok: true},
		{name: "204", handle: status(204), ok: true},
		{name: "400", handle: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "bad span", 400) }, cause: export.Rejected, says: `400 Bad Request: "bad span"`},
		{name: "dirty words", handle: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			_, _ = w.Write([]byte("\x1b]0;evil\a no\xff\r\n\r\n  entry\u202e " + strings.Repeat("ü", 5000)))
		}, cause: export.Rejected, says: `403 Forbidden: "]0;evil no entry üüü`},
		{name: "404", handle: http.NotFound, cause: export.Rejected, says: "404"},
		{name: "408", handle: status(408), retry: true, says: "408"},
		{name: "429", handle: after(429, "7"), retry: true, min: 7 * time.Second, max: 7 * time.Second},
		{name: "503 with a date", handle: after(503, soon), retry: true, min: 80 * time.Second, max: 91 * time.Second},
		{name: "503 with a past date", handle: after(503, "Sun, 06 Nov 1994 08:49:37 GMT"), retry: true},
		{name: "503 with garbage", handle: after(503, "-3"), retry: true},
		{name: "500", handle: status(500), retry: true},
		{name: "302", handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://u:secret@other/login?token=CANARY", http.StatusFound)
		}, cause: export.Redirected, says: `redirect to "http://u:xxxxx@other/login?token=xxxxx"`},
		{name: "repeats what it was asked for", handle: func(w http.ResponseWriter, r *http.Request) {
			u, p, _ := r.BasicAuth()
			http.Error(w, "cannot POST "+r.RequestURI+" as "+u+" with "+p, 400)
		}, cause: export.Rejected, says: `400 Bad Request: "cannot POST /?token=xxxxx&n=1 as user with xxxxx"`},
		{name: "307", handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, cause: export.Redirected},
		{name: "308 to nowhere", handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://[::1")
			w.WriteHeader(308)
		}, cause: export.Redirected},
		{name: "closed before the answer", handle: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, retry: true},
		{name: "closed in the body of the request", handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = r.Body.Read(make([]byte, 1))
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.Close()
		}, retry: true},
		{name: "not HTTP", handle: func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.9\r\n"))
			conn.Close()
		}, retry: true},
		{name: "endless header", handle: func(w http.ResponseWriter, r *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = conn.Write([]byte("HTTP/1.1 202 Accepted\r\n"))
			for {
				if _, err := conn.Write([]byte("X-A: " + strings.Repeat("a", 1<<12) + "\r\n")); err != nil {
					conn.Close()
					return
				}
			}
		}, retry: true},
		{name: "closed in the body of the answer", handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(202)
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ok: true},
		{name: "endless answer", handle: func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
					return
				}
			}
		}, ok: true},
		{name: "hangs", handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, retry: true, says: "time of 300ms is over"},
		{name: "hangs in the body of the answer", handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, ok: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewServer(c.handle)
			defer srv.Close()
			defer srv.CloseClientConnections()
			endpoint := strings.Replace(srv.URL, "//", "//user:CANARY@", 1) + "/?token=CANARY%2F1&n=1"
			client := newClient(t, endpoint, &zipkin.Encoder{}, ClientOptions{Timeout: 300 * time.Millisecond})
			err := client.Post(t.Context(), []byte("[{},{}]"), 2)
			if c.ok {
				qt.Assert(t, qt.IsNil(err))
				return
			}
			qt.Assert(t, qt.IsNotNil(err))
			qt.Check(t, qt.Not(qt.StringContains(err.Error(), "CANARY")))
			f := export.AsFailure(err, -1)
			qt.Check(t, qt.Equals(f.Retry, c.retry))
			qt.Check(t, qt.IsTrue(c.min <= f.After && f.After <= c.max), qt.Commentf("%v", f.After))
			if !c.retry {
				qt.Check(t, qt.Equals(f.Cause, c.cause))
				qt.Check(t, qt.Equals(f.Lost, 2))
			}
			qt.Check(t, qt.StringContains(err.Error(), c.says))
			qt.Check(t, qt.IsTrue(len(err.Error()) < 400))
		})
	}
}

// TestRefused: the error of a refused connection names neither user nor
// password.
func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	addr := l.Addr().String()
	l.Close()
	c := newClient(t, "otlp+http://user:secret@"+addr+"/v1/traces", &otlp.Encoder{}, ClientOptions{})
	err = c.Post(t.Context(), []byte("x"), 1)
	qt.Assert(t, qt.IsTrue(export.AsFailure(err, 1).Retry))
	qt.Assert(t, qt.StringContains(err.Error(), "connection refused"))
	qt.Assert(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
}

// TestRequest: what is sent.
func TestRequest(t *testing.T) {
	var got *http.Request
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	}))
	defer srv.Close()
	c := newClient(t, "http://user:se%20cret@"+strings.TrimPrefix(srv.URL, "http://")+"/a/b?c=d#e", &zipkin.Encoder{}, ClientOptions{})
	qt.Assert(t, qt.IsNil(c.Post(t.Context(), []byte("[]"), 0)))
	user, password, ok := got.BasicAuth()
	qt.Check(t, qt.IsTrue(ok && user == "user" && password == "se cret"))
	qt.Check(t, qt.Equals(got.RequestURI, "/a/b?c=d"))
	qt.Check(t, qt.Equals(got.Method, "POST"))
	qt.Check(t, qt.Equals(got.Header.Get("Content-Type"), "application/json"))
	qt.Check(t, qt.Equals(got.Header.Get("Content-Encoding"), "gzip"))
	qt.Check(t, qt.Equals(got.Header.Get("User-Agent"), "dtagent"))
	qt.Check(t, qt.Equals(got.ContentLength, int64(len(body))))
	qt.Check(t, qt.Equals(got.Header.Get("Traceparent"), ""))
}

// TestPaths: an OTLP endpoint is a base URL or that of traces.
func TestPaths(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://h:9411/api/v2/spans?x=y":    "http://h:9411/api/v2/spans?x=y",
		"http://h":                          "http://h",
		"otlp+http://h:4318":                "http://h:4318/v1/traces",
		"otlp+https://u:p@h/base/":          "https://h/base/v1/traces",
		"otlp+https://h/v1/traces?tenant=a": "https://h/v1/traces?tenant=a",
	} {
		qt.Check(t, qt.Equals(newClient(t, endpoint, &otlp.Encoder{}, ClientOptions{}).url.String(), want))
	}
}

// TestGzip: a receiver that does not know gzip is asked once only.
func TestGzip(t *testing.T) {
	for _, refusal := range []int{400, 415} {
		t.Run(fmt.Sprint(refusal), func(t *testing.T) {
			var compressed, plain atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Content-Encoding") == "gzip" {
					compressed.Add(1)
					w.WriteHeader(refusal)
					return
				}
				plain.Add(1)
				if b, _ := io.ReadAll(r.Body); string(b) != "[{}]" {
					t.Errorf("%q", b)
				}
			}))
			defer srv.Close()
			c := newClient(t, srv.URL, &zipkin.Encoder{}, ClientOptions{})
			for range 5 {
				qt.Assert(t, qt.IsNil(c.Post(t.Context(), []byte("[{}]"), 1)))
			}
			qt.Check(t, qt.Equals(compressed.Load(), 1))
			qt.Check(t, qt.Equals(plain.Load(), 5))
		})
	}
	t.Run("known", func(t *testing.T) { // then 400 means what it says
		var n atomic.Int32
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) > 1 {
				w.WriteHeader(400)
			}
		}))
		defer srv.Close()
		c := newClient(t, srv.URL, &zipkin.Encoder{}, ClientOptions{})
		qt.Assert(t, qt.IsNil(c.Post(t.Context(), []byte("[{}]"), 1)))
		qt.Assert(t, qt.IsNotNil(c.Post(t.Context(), []byte("[{}]"), 1)))
		qt.Check(t, qt.Equals(n.Load(), 2))
	})
}

// TestPartialSuccess: of what an OTLP receiver refuses only that is lost.
func TestPartialSuccess(t *testing.T) {
	answer := &collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: 3, ErrorMessage: "too\nold"}}
	text, err := proto.Marshal(answer)
	qt.Assert(t, qt.IsNil(err))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(text) }))
	defer srv.Close()
	o := options("otlp+"+srv.URL, t.TempDir())
	o.Encoder = &otlp.Encoder{}
	e := open(t, o)
	give(t, e, records(1, 10))
	flush(t, e)
	qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 10, Sent: 7, Dropped: [export.NumCauses]uint64{export.Rejected: 3}}))
	qt.Check(t, qt.Equals(e.o.Ledger.Health().LastError, `3 spans refused: "too old"`))
}

func TestCancel(t *testing.T) {
	got := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(got)
		<-r.Context().Done()
	}))
	defer srv.Close()
	c := newClient(t, srv.URL, &zipkin.Encoder{}, ClientOptions{Timeout: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-got; cancel() }()
	qt.Assert(t, qt.IsTrue(export.AsFailure(c.Post(ctx, []byte("[]"), 0), 0).Retry))
}

// TestOneConnection: requests follow one another on one connection, refusals
// too.
func TestOneConnection(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", 500) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c := newClient(t, srv.URL, &zipkin.Encoder{}, ClientOptions{})
	for range 5 {
		qt.Assert(t, qt.IsNotNil(c.Post(t.Context(), []byte("[]"), 0)))
	}
	qt.Assert(t, qt.Equals(conns.Load(), 1))
}

// TestIdleClosed: a receiver that closes the connection between two requests, or
// just when the next one comes, does not make it fail.
func TestIdleClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// One answer, and none to the next request.
			r := bufio.NewReader(conn)
			for i := range 2 {
				req, err := http.ReadRequest(r)
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, req.Body)
				if len(req.Header["Idempotency-Key"]) > 0 {
					t.Error("the header was sent")
				}
				if i == 0 {
					_, _ = io.WriteString(conn, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
				}
			}
			conn.Close()
		}
	}()
	c := newClient(t, "http://"+l.Addr().String(), &zipkin.Encoder{}, ClientOptions{})
	for range 5 {
		qt.Assert(t, qt.IsNil(c.Post(t.Context(), []byte("[]"), 0)))
	}
}

// authority is a CA of a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	qt.Assert(t, qt.IsNil(err))
	cert, err := x509.ParseCertificate(der)
	qt.Assert(t, qt.IsNil(err))
	return &authority{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate for the loopback address or another host.
func (a *authority) issue(t *testing.T, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	qt.Assert(t, qt.IsNil(err))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTLS: receivers are checked against the files, as they are when it comes to
// it.
func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	serve := func(cert tls.Certificate) string {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.URL
	}
	good, stranger, wrongHost := serve(ca.issue(t, "127.0.0.1")), serve(other.issue(t, "127.0.0.1")), serve(ca.issue(t, "collector.example"))
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.pem")
	write := func(b []byte) { qt.Assert(t, qt.IsNil(os.WriteFile(file, b, 0o600))) }
	post := func(url string, trust *Trust) error {
		return newClient(t, url, &zipkin.Encoder{}, ClientOptions{Trust: trust}).Post(t.Context(), []byte("[]"), 0)
	}
	fails := func(err error, says string) {
		t.Helper()
		qt.Assert(t, qt.IsNotNil(err))
		qt.Check(t, qt.IsTrue(export.AsFailure(err, 0).Retry))
		qt.Check(t, qt.StringContains(err.Error(), says))
	}

	trust := NewTrust(file)
	fails(post(good, trust), "CA file")
	write([]byte("no certificate"))
	fails(post(good, trust), "no certificate in it")
	write(ca.pem)
	qt.Check(t, qt.IsNil(post(good, trust)))
	fails(post(stranger, trust), "unknown authority")
	fails(post(wrongHost, trust), "IP SANs")
	// The system's do not count beside a file, and without one the bundles do.
	fails(post(good, NewTrust("", filepath.Join(dir, "none"))), "unknown authority")
	qt.Check(t, qt.IsNil(post(good, NewTrust("", filepath.Join(dir, "none"), file))))
	fails(post(good, nil), "unknown authority")

	// Changed files count for a client that is in use.
	c := newClient(t, good, &zipkin.Encoder{}, ClientOptions{Trust: trust})
	qt.Check(t, qt.IsNil(c.Post(t.Context(), []byte("[]"), 0)))
	write(other.pem)
	fails(c.Post(t.Context(), []byte("[]"), 0), "unknown authority")
	write(bytes.Join([][]byte{other.pem, ca.pem}, nil))
	qt.Check(t, qt.IsNil(c.Post(t.Context(), []byte("[]"), 0)))
}
