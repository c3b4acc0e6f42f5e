package otlphttp

import (
	"crypto/x509"
	"net/http"
	"net/url"
	"time"
)

// Trust is what the certificates of https receivers are checked against;
// *remote.Trust is one. Another pool than before means that the certificates have
// changed.
type Trust interface {
	Roots() (*x509.CertPool, error)
}

// Options of a client. Zero values mean the defaults.
type Options struct {
	Trust   Trust         // nil: the system's CA certificates
	Timeout time.Duration // of a whole request; 10 s
}

// NewClient returns a client that sends every request to u, with its query and
// its user, which the OpenTelemetry exporters leave out. It follows no redirect,
// which would lose the body or hand it to another host. How a request ended is
// noted in the Answer of its context.
func NewClient(u *url.URL, o Options) *http.Client {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	t := &transport{url: *u, Transport: Transport{Timeout: o.Timeout}}
	if u.Scheme == "https" {
		t.Trust = o.Trust
	}
	return &http.Client{Timeout: o.Timeout, Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// transport mends the request and notes the answer.
type transport struct {
	Transport
	url url.URL
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.send(req)
	if a, ok := req.Context().Value(answerKey{}).(*Answer); ok {
		a.note(resp, err)
	}
	return resp, err
}

func (t *transport) send(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	u := t.url
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
		u.User = nil
	}
	req.URL, req.Host = &u, ""
	req.Header.Set("User-Agent", "dtagent")
	return t.Transport.RoundTrip(req)
}
