// Package zipkin sends spans to zipkin-v2 receivers over HTTP.
//
// It wraps the OpenTelemetry exporter, which is deprecated upstream and
// therefore stays behind export.Exporter. Four of its ways do not fit and are
// mended in the transport: it takes no success but 202, it does not tell a
// refusal from a failure, it follows redirects (losing the body of a POST), and
// it lower-cases names, so that VM.start would be another span here than in the
// bugtool files.
package zipkin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	//lint:ignore SA1019 deprecated upstream; export.Exporter keeps it replaceable
	otelzipkin "go.opentelemetry.io/otel/exporters/zipkin"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Options of an Exporter. Zero values mean the defaults.
type Options struct {
	Transport http.RoundTripper // nil: one of its own, so that no other endpoint can hold it up
	Timeout   time.Duration     // of a whole request; 10 s
}

// Exporter sends the spans of one Observer to one URL. It implements
// export.Exporter.
type Exporter struct {
	exp   *otelzipkin.Exporter
	base  http.RoundTripper
	own   *http.Transport // nil: handed in
	spans []sdktrace.ReadOnlySpan
}

// New returns an exporter for the URL of a receiver, path included. It does not
// connect.
func New(endpoint string, o Options) (*Exporter, error) {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	e := &Exporter{base: o.Transport}
	if e.base == nil {
		e.own = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: o.Timeout / 2}).DialContext,
			TLSHandshakeTimeout:   o.Timeout / 2,
			ResponseHeaderTimeout: o.Timeout,
			MaxIdleConns:          1,
			IdleConnTimeout:       90 * time.Second,
			ForceAttemptHTTP2:     true,
			// A receiver may send what it likes: none of it is kept.
			MaxResponseHeaderBytes: 64 << 10,
		}
		e.base = e.own
	}
	var err error
	e.exp, err = otelzipkin.New(endpoint, otelzipkin.WithClient(&http.Client{
		Transport: &transport{e.base},
		Timeout:   o.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}), otelzipkin.WithHeaders(map[string]string{"User-Agent": "dtagent"}))
	if err != nil {
		return nil, fmt.Errorf("zipkin exporter: %w", err)
	}
	return e, nil
}

// Export posts the batch in one request. Refused connections, timeouts, answers
// that break off before their header is whole, 408, 429 and 5xx may be tried
// again; other 4xx and redirects lose the batch. A retry after a broken answer
// can deliver spans twice; their ids are the same.
func (e *Exporter) Export(ctx context.Context, batch []*export.Record) error {
	e.spans = e.spans[:0]
	for _, r := range batch {
		e.spans = append(e.spans, newSnapshot(r))
	}
	defer func() { clear(e.spans) }()
	a := &attempt{}
	err := e.exp.ExportSpans(context.WithValue(ctx, attemptKey{}, a), e.spans)
	switch {
	case !a.tried: // not even a request came of it
		if err == nil {
			err = errors.New("the exporter made no request")
		}
		return &export.Failure{Err: err, Cause: export.EncodeError, Lost: len(batch)}
	case a.encode != nil:
		return &export.Failure{Err: a.encode, Cause: export.EncodeError, Lost: len(batch)}
	case a.status == 0:
		if a.err != nil {
			err = a.err // without the URL, which may hold a password
		}
		return &export.Failure{Err: fmt.Errorf("no answer: %w", err), Retry: true}
	case a.status < 300:
		return nil
	case a.status < 400:
		return &export.Failure{Err: fmt.Errorf("answered %s, a redirect to %q: name the URL that takes the spans as the endpoint", statusText(a.status), a.location),
			Cause: export.Redirected, Lost: len(batch)}
	case a.status >= 500, a.status == http.StatusTooManyRequests, a.status == http.StatusRequestTimeout:
		return &export.Failure{Err: fmt.Errorf("answered %s%s", statusText(a.status), a.said()), Retry: true, After: a.after}
	}
	return &export.Failure{Err: fmt.Errorf("answered %s%s", statusText(a.status), a.said()), Cause: export.Rejected, Lost: len(batch)}
}

// Close ends the connection that is kept open.
func (e *Exporter) Close() error {
	if e.own != nil {
		e.own.CloseIdleConnections()
	}
	return e.exp.Shutdown(context.Background())
}

func statusText(code int) string {
	if t := http.StatusText(code); t != "" {
		return strconv.Itoa(code) + " " + t
	}
	return strconv.Itoa(code)
}

// retryAfter reads both forms of the header; 0 if it is absent or wrong.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// location returns where a redirect points, without a password.
func location(h http.Header) string {
	u, err := url.Parse(h.Get("Location"))
	if err != nil {
		return ""
	}
	s := u.Redacted()
	return s[:min(len(s), 200)]
}
