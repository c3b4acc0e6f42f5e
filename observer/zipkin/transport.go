package zipkin

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// attempt travels in the context of one ExportSpans and brings back what the
// exporter does not tell.
type attempt struct {
	tried    bool
	encode   error
	err      error // of the transport
	status   int   // 0: no answer
	location string
	after    time.Duration
	body     string // beginning of a refusal
}

type attemptKey struct{}

func (a *attempt) said() string {
	if a.body == "" {
		return ""
	}
	return fmt.Sprintf(": %q", a.body)
}

// maxSaid is how much of the text of a refusal is shown.
const maxSaid = 200

// transport mends the request and notes the answer.
type transport struct{ base http.RoundTripper }

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	a := req.Context().Value(attemptKey{}).(*attempt)
	a.tried = true
	body, err := io.ReadAll(req.Body)
	_ = req.Body.Close()
	if err != nil {
		a.encode = err
		return nil, err
	}
	body = unshield(body)
	req = req.Clone(req.Context())
	req.Body = io.NopCloser(bytes.NewReader(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.ContentLength = int64(len(body))

	resp, err := t.base.RoundTrip(req)
	if err != nil {
		a.err = err
		return nil, err
	}
	a.status = resp.StatusCode
	a.location = location(resp.Header)
	a.after = retryAfter(resp.Header, time.Now())
	// What the body says matters only to a person; the status has decided. A
	// short one is read to its end, so that the connection can be used again.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	_ = resp.Body.Close()
	if resp.StatusCode >= 400 {
		text = text[:min(len(text), maxSaid)]
		a.body = strings.ToValidUTF8(strings.TrimSpace(string(text)), "")
	}
	resp.Body = http.NoBody
	if resp.StatusCode/100 == 2 {
		resp.StatusCode = http.StatusAccepted
	}
	return resp, nil
}
