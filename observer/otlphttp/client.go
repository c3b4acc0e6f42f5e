package otlphttp

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"sync"
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
	t := &transport{url: *u, timeout: o.Timeout}
	if u.Scheme == "https" {
		t.trust = o.Trust
	}
	return &http.Client{Timeout: o.Timeout, Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// transport mends the request and notes the answer.
type transport struct {
	url     url.URL
	timeout time.Duration
	trust   Trust // nil: none of its own, or not https

	mu    sync.Mutex
	roots *x509.CertPool // that base was made with
	base  *http.Transport
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.send(req)
	if a, ok := req.Context().Value(answerKey{}).(*Answer); ok {
		a.note(resp, err)
	}
	return resp, err
}

func (t *transport) send(req *http.Request) (*http.Response, error) {
	base, err := t.current()
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	req = req.Clone(req.Context())
	u := t.url
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
		u.User = nil
	}
	req.URL, req.Host = &u, ""
	req.Header.Set("User-Agent", "dtagent")
	return base.RoundTrip(req)
}

// current returns the connection, made anew when the CA certificates have
// changed.
func (t *transport) current() (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var roots *x509.CertPool
	if t.trust != nil {
		var err error
		if roots, err = t.trust.Roots(); err != nil {
			return nil, err
		}
	}
	if t.base != nil && t.roots == roots {
		return t.base, nil
	}
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
	t.roots = roots
	t.base = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: t.timeout / 2}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    t.timeout / 2,
		ResponseHeaderTimeout:  t.timeout,
		MaxIdleConns:           1,
		IdleConnTimeout:        90 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return t.base, nil
}

// CloseIdleConnections is what http.Client's method of that name calls.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
}
