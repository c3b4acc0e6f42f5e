package otlphttp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// Answer is how one request ended, which the OpenTelemetry exporters do not
// tell in a way that a program can use. It belongs to one goroutine.
type Answer struct {
	Status int           // 0: none came
	After  time.Duration // pause that the receiver asks for; 0: none
	Body   []byte        // its beginning
	err    error         // of the transport, without the URL
}

type answerKey struct{}

// WithAnswer returns a context for one request and where its answer is noted.
func WithAnswer(ctx context.Context) (context.Context, *Answer) {
	a := &Answer{}
	return context.WithValue(ctx, answerKey{}, a), a
}

// maxBody is how much of an answer is kept: the message of an OTLP receiver, not
// what a proxy may send.
const maxBody = 16 << 10

func (a *Answer) note(resp *http.Response, err error) {
	if a.err = err; err != nil {
		return
	}
	a.Status = resp.StatusCode
	a.After = retryAfter(resp.Header, time.Now())
	a.Body, _ = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	// The exporter reads it again: a short one whole, so that the connection can
	// be used again.
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(a.Body), resp.Body), resp.Body}
}

// Failure makes of an exporter's error what became of n records. err is not
// nil.
func (a *Answer) Failure(err error, n int) *export.Failure {
	text := strconv.Itoa(a.Status)
	if t := http.StatusText(a.Status); t != "" {
		text += " " + t
	}
	switch {
	case a.Status == 0 && a.err != nil:
		return &export.Failure{Err: fmt.Errorf("no answer: %w", a.err), Retry: true}
	case a.Status == 0: // no request was made, or not sent to its end
		return &export.Failure{Err: err, Retry: true}
	case a.Status < 300:
		return &export.Failure{Err: err, Cause: export.Rejected, Lost: n}
	case a.Status < 400:
		return &export.Failure{Err: fmt.Errorf("answered %s, a redirect: name the URL that takes the spans as the endpoint", text), Cause: export.Redirected, Lost: n}
	case a.Status >= 500, a.Status == http.StatusTooManyRequests, a.Status == http.StatusRequestTimeout:
		return &export.Failure{Err: fmt.Errorf("answered %s", text), Retry: true, After: a.After}
	}
	return &export.Failure{Err: fmt.Errorf("answered %s", text), Cause: export.Rejected, Lost: n}
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
