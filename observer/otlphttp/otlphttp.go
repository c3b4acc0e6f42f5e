// Package otlphttp is what the OpenTelemetry exporters for metrics and logs
// need to reach the OTLP receivers that Observers name as endpoints.
package otlphttp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// prefix marks an endpoint of an Observer as OTLP.
const prefix = "otlp+"

// The signals of OTLP, as the last element of their default paths.
const (
	Traces  = "traces"
	Metrics = "metrics"
	Logs    = "logs"
)

// IsEndpoint tells whether the endpoint of an Observer is an OTLP receiver:
// otlp+http://… or otlp+https://….
func IsEndpoint(endpoint string) bool {
	return strings.HasPrefix(endpoint, prefix+"http://") || strings.HasPrefix(endpoint, prefix+"https://")
}

// URL returns where the receiver takes that signal. The endpoint is that of
// traces: its path ends in /v1/traces, which becomes /v1/<signal>; to any other
// path /v1/<signal> is added, as the OpenTelemetry exporters do with a base URL.
func URL(endpoint, signal string) (*url.URL, error) {
	if !IsEndpoint(endpoint) {
		return nil, errors.New("not an OTLP endpoint: write otlp+http://HOST:PORT/v1/traces or otlp+https://…")
	}
	u, err := url.Parse(strings.TrimPrefix(endpoint, prefix))
	if err != nil {
		var e *url.Error // its text holds the URL, which may hold a password
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("OTLP endpoint: %w", err)
	}
	if u.Hostname() == "" {
		return nil, errors.New("OTLP endpoint: no host")
	}
	u.Fragment, u.RawPath = "", ""
	path := strings.TrimSuffix(u.Path, "/")
	path = strings.TrimSuffix(path, "/v1/"+Traces)
	u.Path = path + "/v1/" + signal
	return u, nil
}

// Options of a Client. Zero values mean the defaults.
type Options struct {
	TLS     *tls.Config   // nil: the system's CAs
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
	return &http.Client{
		Timeout: o.Timeout,
		Transport: &transport{url: *u, base: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: o.Timeout / 2}).DialContext,
			TLSClientConfig:        o.TLS,
			TLSHandshakeTimeout:    o.Timeout / 2,
			ResponseHeaderTimeout:  o.Timeout,
			MaxIdleConns:           1,
			IdleConnTimeout:        90 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type transport struct {
	url  url.URL
	base *http.Transport
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	u := t.url
	if u.User != nil {
		password, _ := u.User.Password()
		req.SetBasicAuth(u.User.Username(), password)
		u.User = nil
	}
	req.URL = &u
	req.Header.Set("User-Agent", "dtagent")
	resp, err := t.base.RoundTrip(req)
	if a, ok := req.Context().Value(answerKey{}).(*Answer); ok {
		a.note(resp, err)
	}
	return resp, err
}

// CloseIdleConnections is called by http.Client's method of that name.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }
