package remote

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"sync"
	"time"
)

// transport is the connection of one Client. It is made anew when the CA
// certificates have changed.
type transport struct {
	timeout time.Duration
	trust   *Trust // nil: not https

	mu    sync.Mutex
	roots *x509.CertPool // that base was made with
	base  *http.Transport
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	base, err := t.current()
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return base.RoundTrip(req)
}

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
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: t.timeout / 2}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: t.timeout / 2,
		MaxIdleConns:        1,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		// A receiver may send what it likes: none of it is kept.
		MaxResponseHeaderBytes: 64 << 10,
	}
	return t.base, nil
}

// close ends the connection that is kept open.
func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
}
