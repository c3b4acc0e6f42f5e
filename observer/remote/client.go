package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/klauspost/compress/gzip"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/masked"
	"github.com/xenserver/dtagent/observer/otlphttp"
)

// ClientOptions of a Client. Zero values mean the defaults.
type ClientOptions struct {
	Trust     *Trust            // nil: the system's and the pool's CA certificates
	Timeout   time.Duration     // of a whole request; 15 s
	Transport http.RoundTripper // nil: one of its own, so that no other endpoint can hold it up
	UserAgent string            // "dtagent"
}

// Client posts bodies of one form to one URL. Its methods may be called by
// several goroutines at once.
type Client struct {
	url     *url.URL // without user and password
	user    *url.Userinfo
	secrets masked.Secrets
	enc     Encoder
	o       ClientOptions
	own     *otlphttp.Transport // nil: handed in
	gzip    atomic.Int32
}

// Whether the receiver takes gzip.
const (
	gzipTry int32 = iota
	gzipYes
	gzipNo
)

// StatusError is the error of an answer other than 2xx.
type StatusError struct {
	Code int    // of HTTP
	Said string // the beginning of the answer's body, cleaned
}

func (e *StatusError) Error() string {
	s := "answered " + strconv.Itoa(e.Code)
	if t := http.StatusText(e.Code); t != "" {
		s += " " + t
	}
	if e.Said != "" {
		s += ": " + strconv.Quote(e.Said)
	}
	return s
}

// NewClient returns a client for an endpoint of an Observer: an http or https
// URL, which is used as it is, or an OTLP one (see otlphttp.URL). A user and
// password in it go as basic authentication. It does not connect.
func NewClient(endpoint string, enc Encoder, o ClientOptions) (*Client, error) {
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Trust == nil {
		o.Trust = NewTrust("", PoolBundles()...)
	}
	if o.UserAgent == "" {
		o.UserAgent = "dtagent"
	}
	c := &Client{url: u, user: u.User, enc: enc, secrets: masked.SecretsOf(u)}
	u.User = nil
	if o.Transport == nil {
		c.own = &otlphttp.Transport{Timeout: o.Timeout}
		if u.Scheme == "https" {
			c.own.Trust = o.Trust
		}
		o.Transport = c.own
	}
	c.o = o
	return c, nil
}

func parseEndpoint(endpoint string) (*url.URL, error) {
	if otlphttp.IsEndpoint(endpoint) {
		return otlphttp.URL(endpoint, otlphttp.Traces)
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil: // its text holds the URL
		return nil, errors.New("endpoint: not a URL")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("endpoint %s: not an http or https URL with a host", masked.URL(u))
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// Close ends the connection that is kept open.
func (c *Client) Close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// Post sends one body that holds n spans, in one request: compressed, and when
// the receiver does not take that, once more without. It returns nil when every
// span was delivered, else a *export.Failure. Refused and broken connections,
// timeouts, 408, 429 and 5xx may be tried again, which can deliver spans twice;
// other 4xx and redirects lose the body.
func (c *Client) Post(ctx context.Context, body []byte, n int) error {
	use := c.gzip.Load()
	a, err := c.post(ctx, body, use != gzipNo)
	if err == nil && use == gzipTry {
		switch {
		case a.code/100 == 2:
			c.gzip.CompareAndSwap(gzipTry, gzipYes)
		case a.code == http.StatusUnsupportedMediaType || a.code == http.StatusBadRequest:
			// Perhaps it did not know what it was given.
			if a, err = c.post(ctx, body, false); err == nil && a.code/100 == 2 {
				c.gzip.Store(gzipNo)
			}
		}
	}
	if err != nil {
		return &export.Failure{Err: fmt.Errorf("no answer: %w", err), Retry: true}
	}
	return c.judge(a, n)
}

// answer is what is kept of a response.
type answer struct {
	code     int
	location string
	after    time.Duration
	text     []byte
}

// timeoutError is the error of a request that took longer.
type timeoutError time.Duration

func (e timeoutError) Error() string { return fmt.Sprintf("time of %s is over", time.Duration(e)) }

// maxAnswer is how much of the body of an answer is read, and maxSaid how much of
// the words of a refusal is shown.
const (
	maxAnswer = 64 << 10
	maxSaid   = 200
)

func (c *Client) post(ctx context.Context, body []byte, compress bool) (*answer, error) {
	send := body
	if compress {
		var err error
		if send, err = gzipped(body); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.o.Timeout, timeoutError(c.o.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(send))
	if err != nil {
		return nil, err
	}
	if c.user != nil {
		password, _ := c.user.Password()
		req.SetBasicAuth(c.user.Username(), password)
	}
	// A connection that the receiver has closed meanwhile is no failure: the
	// empty list lets the transport try once more, on a new one. A span that
	// arrives twice has the same ids.
	req.Header["Idempotency-Key"] = []string{}
	req.Header.Set("Content-Type", c.enc.ContentType())
	req.Header.Set("User-Agent", c.o.UserAgent)
	if compress {
		req.Header.Set("Content-Encoding", "gzip")
	}
	// Not by way of an http.Client, which would follow redirects and puts the URL
	// into its errors.
	resp, err := c.o.Transport.RoundTrip(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	defer resp.Body.Close()
	a := &answer{code: resp.StatusCode, location: location(resp.Header), after: retryAfter(resp.Header, time.Now())}
	// The status has decided, whatever becomes of the body. A short one is read
	// to its end, so that the connection can be used again.
	a.text, _ = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return a, nil
}

func gzipped(body []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (c *Client) judge(a *answer, n int) error {
	status := &StatusError{Code: a.code, Said: c.clean(a.text)}
	switch {
	case a.code < 200: // 101: it has switched to something else
		return &export.Failure{Err: status, Cause: export.Rejected, Lost: n}
	case a.code < 300:
		rejected, message := c.enc.Check(a.text)
		if rejected <= 0 {
			return nil
		}
		return &export.Failure{Err: fmt.Errorf("%d spans refused: %q", rejected, c.clean([]byte(message))),
			Cause: export.Rejected, Lost: min(rejected, n)}
	case a.code < 400:
		return &export.Failure{Err: fmt.Errorf("answered %d %s, a redirect to %q: name the URL that takes the spans as the endpoint",
			a.code, http.StatusText(a.code), a.location), Cause: export.Redirected, Lost: n}
	case a.code >= 500, a.code == http.StatusTooManyRequests, a.code == http.StatusRequestTimeout:
		return &export.Failure{Err: status, Retry: true, After: a.after}
	}
	return &export.Failure{Err: status, Cause: export.Rejected, Lost: n}
}

// clean is the function, and takes out the secrets of the endpoint: a receiver may
// repeat what it was asked for.
func (c *Client) clean(text []byte) string { return clean([]byte(c.secrets.Hide(string(text)))) }

// clean returns the beginning of what a receiver said, in one line that does not
// harm a terminal.
func clean(text []byte) string {
	text = text[:min(len(text), 4*maxSaid)]
	s := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(text), ""))
	s = strings.Join(strings.Fields(s), " ")
	return strings.ToValidUTF8(s[:min(len(s), maxSaid)], "")
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

// location returns where a redirect points, without what may be secret.
func location(h http.Header) string {
	u, err := url.Parse(h.Get("Location"))
	if err != nil {
		return ""
	}
	return clean([]byte(masked.URL(u)))
}
