package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/xenserver/dtagent/probes/recording"
)

// deadliner writes an answer in pieces, each of which the peer has to take in time.
type deadliner struct {
	http.ResponseWriter
	rc *http.ResponseController
}

func (d deadliner) Write(b []byte) (int, error) {
	_ = d.rc.SetWriteDeadline(time.Now().Add(patience))
	return d.ResponseWriter.Write(b)
}

func (d deadliner) flush() error {
	_ = d.rc.SetWriteDeadline(time.Now().Add(patience))
	return d.rc.Flush()
}

// serveRecord sends a recording that is not compressed, until the peer goes or the
// agent stops.
func (s *Server) serveRecord(w http.ResponseWriter, req *http.Request) {
	h, tap, err := s.from.Record()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer tap.Leave()
	d := deadliner{w, http.NewResponseController(w)}
	_ = d.rc.SetReadDeadline(time.Time{}) // the peer has nothing more to say
	w.Header().Set("Content-Type", "application/octet-stream")
	out, err := recording.NewWriter(d, h, false)
	if err != nil || d.flush() != nil {
		return
	}
	for {
		b, err := tap.Next(req.Context())
		if errors.Is(err, recording.ErrEnded) {
			_ = out.End(err.Error())
		}
		if err != nil || out.Block(b) != nil || tap.Waiting() == 0 && d.flush() != nil {
			return
		}
	}
}

// Record calls ready with what the agent says of a recording that begins now, then
// block for all that it has to record, until ctx ends (nil), the agent stops (the
// reason), or a function fails.
func (c *Client) Record(ctx context.Context, ready func(*recording.Header) error, block func(*recording.Block) error) (ended string, err error) {
	body, err := c.get(ctx, "record")
	if err != nil {
		return "", err
	}
	defer body.Close()
	r, err := recording.NewReader(body)
	if err != nil {
		if ctx.Err() != nil {
			return "", nil
		}
		return "", fmt.Errorf("control socket %s: record: %w", c.path, err)
	}
	defer r.Close()
	if err := ready(r.Header()); err != nil {
		return "", err
	}
	var b recording.Block
	for err = r.ReadBlock(&b); err == nil; err = r.ReadBlock(&b) {
		if err := block(&b); err != nil {
			return "", err
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return r.Trailer().Reason, nil
	case ctx.Err() != nil:
		return "", nil
	case errors.Is(err, recording.ErrTorn):
		return "", fmt.Errorf("control socket %s: the agent went away", c.path)
	}
	return "", fmt.Errorf("control socket %s: record: %w", c.path, err)
}
