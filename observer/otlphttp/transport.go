package otlphttp

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"sync"
	"time"
)

// Transport is the connection to one receiver. It is made anew when the CA
// certificates have changed. It has no limit for a whole request: that is the
// http.Client's.
type Transport struct {
	Timeout time.Duration // of a whole request; half of it for connecting, and for the TLS handshake
	Trust   Trust         // nil: the system's CA certificates, or not https

	mu    sync.Mutex
	roots *x509.CertPool // that base was made with
	base  *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	base, err := t.current()
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return base.RoundTrip(req)
}

func (t *Transport) current() (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var roots *x509.CertPool
	if t.Trust != nil {
		var err error
		if roots, err = t.Trust.Roots(); err != nil {
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
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: t.Timeout / 2}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: t.Timeout / 2,
		MaxIdleConns:        1,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		// A receiver may send what it likes: none of it is kept.
		MaxResponseHeaderBytes: 64 << 10,
	}
	return t.base, nil
}

// CloseIdleConnections is what http.Client's method of that name calls.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
}
