package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/xenserver/dtagent/probes/guestio"
)

// Bounds of the interval between samples of the guests' disks.
const (
	MinInterval = 100 * time.Millisecond
	MaxInterval = time.Hour
)

// watchesDisks counts one more who watches the disks, unless there are too many: then
// it says so.
func (s *Server) watchesDisks(w http.ResponseWriter) bool {
	if s.io.Add(1) <= maxReaders {
		return true
	}
	s.io.Add(-1)
	http.Error(w, fmt.Sprintf("%d watch the disks already; try again when one of them has ended", maxReaders), http.StatusServiceUnavailable)
	return false
}

// serveIO answers with a line for each sample of what the guests' disks do.
func (s *Server) serveIO(w http.ResponseWriter, req *http.Request) {
	interval, err := time.ParseDuration(req.URL.Query().Get("interval"))
	if err != nil || interval < MinInterval || interval > MaxInterval {
		http.Error(w, fmt.Sprintf("interval: from %s to %s", MinInterval, MaxInterval), http.StatusBadRequest)
		return
	}
	if !s.watchesDisks(w) {
		return
	}
	defer s.io.Add(-1)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the peer has nothing more to say
	watch, err := s.from.IO(req.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer watch.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	send := func(v any) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(patience))
		return (v == nil || enc.Encode(v) == nil) && rc.Flush() == nil
	}
	if !send(nil) { // the header tells the peer that the disks are watched from now on
		return
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if !send(watch.Sample()) {
				return
			}
		case <-req.Context().Done():
			return
		case <-s.stop:
			send(Notice{Notice: "the agent stops"})
			return
		}
	}
}

// IO calls ready when the guests' disks are watched, then fn with what they did in
// each interval, until ctx ends or the agent stops (nil), or fn fails.
func (c *Client) IO(ctx context.Context, interval time.Duration, ready func(), fn func(*guestio.Sample) error) error {
	body, err := c.get(ctx, "io?interval="+url.QueryEscape(interval.String()))
	if err != nil {
		return err
	}
	defer body.Close()
	if ready != nil {
		ready()
	}
	const most = 16 << 20 // of a line
	limit := &io.LimitedReader{R: body, N: most}
	in := json.NewDecoder(limit)
	for {
		var line struct {
			guestio.Sample
			Notice
		}
		limit.N = most
		err := in.Decode(&line)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("control socket %s: the agent went away", c.path)
		case err != nil:
			return fmt.Errorf("control socket %s: io: %w", c.path, err)
		case line.Notice.Notice != "":
			return nil
		}
		if err := fn(&line.Sample); err != nil {
			return err
		}
	}
}
