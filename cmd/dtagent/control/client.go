package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// ErrNotRunning says that no agent answers on the socket.
var ErrNotRunning = errors.New("dtagent is not running")

// ErrTooSlow says that the agent dropped this reader of its trace stream.
var ErrTooSlow = errors.New("this reader was too slow")

// Client asks an agent. It may be used by several goroutines.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client of the agent whose socket is at path.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext:           dialer(path),
		ResponseHeaderTimeout: patience,
		DisableKeepAlives:     true,
	}}}
}

func (c *Client) get(ctx context.Context, what string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dtagent/"+what, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: nobody answers on %s", ErrNotRunning, c.path)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("control socket %s: permission denied; only root may ask the agent", c.path)
		case errors.As(err, &op):
			return nil, fmt.Errorf("control socket %s: %w", c.path, op.Err)
		}
		return nil, fmt.Errorf("control socket %s: %w", c.path, err)
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		res.Body.Close()
		return nil, fmt.Errorf("control socket %s: %s: %s", c.path, res.Status, bytes.TrimSpace(text))
	}
	return res.Body, nil
}

// Status returns what the agent tells about itself.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	body, err := c.get(ctx, "status")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var s Status
	if err := json.NewDecoder(io.LimitReader(body, 16<<20)).Decode(&s); err != nil {
		return nil, fmt.Errorf("control socket %s: status: %w", c.path, err)
	}
	return &s, nil
}

// Trace calls ready once the agent listens to this reader, then fn for every
// span that finishes, until ctx ends (nil), the agent stops (nil), or it drops
// this reader (ErrTooSlow).
func (c *Client) Trace(ctx context.Context, ready func(), fn func(zipkin.Span)) error {
	body, err := c.get(ctx, "trace")
	if err != nil {
		return err
	}
	defer body.Close()
	if ready != nil {
		ready()
	}
	sc := bufio.NewScanner(body)
	sc.Buffer(make([]byte, 0, 64<<10), 16<<20)
	for sc.Scan() {
		var n Notice
		if line := sc.Bytes(); bytes.HasPrefix(line, []byte(`{"notice"`)) && json.Unmarshal(line, &n) == nil {
			if n.Dropped > 0 || strings.HasPrefix(n.Notice, "too slow") {
				return fmt.Errorf("%w: at least %d span(s) are missing", ErrTooSlow, n.Dropped)
			}
			return nil
		}
		spans, err := zipkin.Parse(sc.Bytes())
		if err != nil {
			return fmt.Errorf("control socket %s: trace: %w", c.path, err)
		}
		for _, s := range spans {
			fn(s)
		}
	}
	if err := sc.Err(); err != nil && ctx.Err() == nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("control socket %s: trace: %w", c.path, err)
	}
	if ctx.Err() == nil {
		return fmt.Errorf("control socket %s: the agent went away", c.path)
	}
	return nil
}
