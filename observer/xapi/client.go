package xapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxReply bounds an answer of XAPI: 1,000 Observers need less than 1 MiB,
	// the host records of a full pool a few.
	maxReply = 16 << 20
	// maxVersion bounds the version in the user agent: XAPI takes 1,006 bytes of
	// header in all.
	maxVersion = 64
	// dialTimeout is for a listener whose queue is full.
	dialTimeout = 5 * time.Second
)

// client makes JSON-RPC 2.0 calls over a unix socket, on connections that are
// kept. It may be used by several goroutines.
type client struct {
	http  *http.Client
	agent string
	limit int64 // bytes of a reply
	id    atomic.Uint64
}

func newClient(socket, version string) *client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &client{
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialer.DialContext(ctx, "unix", socket)
				},
				DisableCompression:     true,
				MaxIdleConns:           1,
				MaxResponseHeaderBytes: 16 << 10,
				IdleConnTimeout:        time.Minute,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		agent: userAgent(version),
		limit: maxReply,
	}
}

// userAgent is what tells dtagent's own calls from those of others.
func userAgent(version string) string {
	version = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return -1
		}
		return r
	}, version)
	return "dtagent/" + version[:min(len(version), maxVersion)]
}

// close gives up the connections that are not in use.
func (c *client) close() { c.http.CloseIdleConnections() }

// call makes one call and returns its result. secret, which the answer must not
// bring into an error, may be "". The error is of type *Error when XAPI says no,
// *ReplyError when the answer makes no sense, and one of net or context
// otherwise.
func (c *client) call(ctx context.Context, timeout time.Duration, secret, method string, params ...any) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id := c.id.Add(1)
	body, err := json.Marshal(struct {
		Version string `json:"jsonrpc"`
		ID      uint64 `json:"id"`
		Method  string `json:"method"`
		Params  []any  `json:"params"`
	}{"2.0", id, method, params})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/jsonrpc", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &ReplyError{method, fmt.Sprintf("HTTP status %d", resp.StatusCode)}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, c.limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: answer: %w", method, err)
	}
	if int64(len(data)) > c.limit {
		return nil, &ReplyError{method, fmt.Sprintf("the answer is larger than %d bytes", c.limit)}
	}
	return decodeReply(method, secret, id, data)
}

// decodeReply returns the result in the JSON-RPC answer to call id.
func decodeReply(method, secret string, id uint64, data []byte) (json.RawMessage, error) {
	var r struct {
		ID     json.RawMessage `json:"id"`
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if json.Unmarshal(data, &r) != nil {
		return nil, &ReplyError{method, "the answer is not a JSON-RPC object"}
	}
	// Before the id: in emergency mode it is always 0.
	if len(r.Error) > 0 && string(r.Error) != "null" {
		return nil, decodeError(method, secret, r.Error)
	}
	if want := strconv.FormatUint(id, 10); string(r.ID) != want && string(r.ID) != `"`+want+`"` {
		return nil, &ReplyError{method, "the answer is that to another call"}
	}
	if len(r.Result) == 0 {
		return nil, &ReplyError{method, "the answer has neither result nor error"}
	}
	return r.Result, nil
}

// decodeError reads the error of an answer. That of a coordinator is an object
// with the code as its message and the parameters as its data, in some versions
// with the code before them. A member passes on the coordinator's list of code
// and parameters as it is; so do errors of emergency mode look.
func decodeError(method, secret string, raw json.RawMessage) error {
	e := &Error{Method: method}
	list := raw
	if raw[0] == '{' {
		list = nil
		if eachMember(raw, func(key string, value json.RawMessage) error {
			switch key {
			case "message":
				e.Code, _ = text(value)
			case "data":
				list = value
			}
			return nil
		}) != nil || e.Code == "" {
			return &ReplyError{method, "the answer has an error without code"}
		}
		e.Code = redact(e.Code, secret)
	}
	first := true
	_ = eachItem(list, func(value json.RawMessage) error {
		p, ok := text(value)
		p = redact(p, secret)
		switch {
		case !ok:
		case first && e.Code == "":
			e.Code = p
		case first && e.Code == p:
		default:
			e.Params = append(e.Params, p)
		}
		first = false
		if len(e.Params) == maxErrorParams {
			return errEnough
		}
		return nil
	})
	switch e.Code {
	case "":
		return &ReplyError{method, "the answer has an error without code"}
	case codeSessionInvalid:
		e.Params = nil // the session reference, in whatever form
	}
	return e
}
