package otlphttp

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer/export"
)

func TestURL(t *testing.T) {
	for endpoint, want := range map[string]string{
		"otlp+http://h:4318/v1/traces":          "http://h:4318/v1/metrics",
		"otlp+http://h:4318":                    "http://h:4318/v1/metrics",
		"otlp+http://h:4318/":                   "http://h:4318/v1/metrics",
		"otlp+https://u:p@h/base/v1/traces/":    "https://u:p@h/base/v1/metrics",
		"otlp+https://[::1]/base/?tenant=a#f":   "https://[::1]/base/v1/metrics?tenant=a",
		"otlp+http://h/v1/traces?x=%2Fv1":       "http://h/v1/metrics?x=%2Fv1",
		"http://h:4318/v1/traces":               "",
		"bugtool":                               "",
		"":                                      "",
		"otlp+http://":                          "",
		"otlp+http://:4318":                     "",
		"otlp+http://user:secret@h:bad/v1":      "",
		"otlp+http://user:secret\x7f@h/traces":  "",
		"otlp+https://user:secret@%zz/v1/trace": "",
	} {
		u, err := URL(endpoint, Metrics)
		if want == "" {
			qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%q", endpoint))
			qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")), qt.Commentf("%v", err))
			continue
		}
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(u.String(), want))
	}
}

type trust struct {
	pool *x509.CertPool
	err  error
}

func (t *trust) Roots() (*x509.CertPool, error) { return t.pool, t.err }

// TestTrust: a receiver is checked against the CA certificates as they are at
// the time.
func TestTrust(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(202) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	u, err := url.Parse(srv.URL + "/v1/metrics")
	qt.Assert(t, qt.IsNil(err))
	roots := &trust{err: errors.New("no CA file")}
	c := NewClient(u, Options{Trust: roots})
	defer c.CloseIdleConnections()
	post := func() (*Answer, error) {
		ctx, a := WithAnswer(context.Background())
		req, err := http.NewRequestWithContext(ctx, "POST", "https://elsewhere.invalid/", strings.NewReader("x"))
		qt.Assert(t, qt.IsNil(err))
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return a, err
	}
	a, err := post()
	qt.Check(t, qt.ErrorMatches(err, ".*no CA file"))
	qt.Check(t, qt.IsTrue(a.Failure(err, 1).Retry)) // the file may yet come
	*roots = trust{pool: x509.NewCertPool()}
	_, err = post()
	qt.Check(t, qt.ErrorMatches(err, ".*certificate.*"))
	roots.pool = x509.NewCertPool()
	roots.pool.AddCert(srv.Certificate())
	a, err = post()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(a.Status, 202))
	system := NewClient(u, Options{})
	_, err = system.Post("https://elsewhere.invalid/", "", nil)
	qt.Check(t, qt.ErrorMatches(err, ".*certificate.*"))
}

func TestFailure(t *testing.T) {
	base := errors.New("exporter's words")
	for _, c := range []struct {
		a    Answer
		want export.Failure
	}{
		{Answer{err: io.EOF}, export.Failure{Retry: true}},
		{Answer{}, export.Failure{Retry: true}},
		{Answer{Status: 200}, export.Failure{Cause: export.Rejected, Lost: 7}},
		{Answer{Status: 302}, export.Failure{Cause: export.Redirected, Lost: 7}},
		{Answer{Status: 401}, export.Failure{Cause: export.Rejected, Lost: 7}},
		{Answer{Status: 408}, export.Failure{Retry: true}},
		{Answer{Status: 429, After: time.Second}, export.Failure{Retry: true, After: time.Second}},
		{Answer{Status: 599, After: time.Second}, export.Failure{Retry: true, After: time.Second}},
	} {
		f := *c.a.Failure(base, 7)
		qt.Check(t, qt.IsNotNil(f.Err))
		f.Err = nil
		qt.Check(t, qt.Equals(f, c.want), qt.Commentf("%+v", c.a))
	}
}
