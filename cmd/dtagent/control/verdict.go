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

	"github.com/xenserver/dtagent/cmd/dtagent/judge"
)

// verdictLine is a line of the answer: how far it is, and at last the report.
type verdictLine struct {
	Watched float64       `json:"watched_seconds,omitempty"`
	Report  *judge.Report `json:"report,omitempty"`
	Failed  string        `json:"failed,omitempty"`
	Notice
}

// serveVerdict watches for some time and answers with a line for each step of it, and
// with the report.
func (s *Server) serveVerdict(w http.ResponseWriter, req *http.Request) {
	d, err := time.ParseDuration(req.URL.Query().Get("for"))
	if err != nil || d < judge.MinTime || d > judge.MaxTime {
		http.Error(w, fmt.Sprintf("for: from %s to %s", judge.MinTime, judge.MaxTime), http.StatusBadRequest)
		return
	}
	if !s.watchesDisks(w) {
		return
	}
	defer s.io.Add(-1)
	rc, ctx, cancel := s.takesLong(w, req)
	defer cancel()
	enc := json.NewEncoder(w)
	begun := false
	send := func(l verdictLine) {
		if !begun {
			w.Header().Set("Content-Type", "application/x-ndjson")
			begun = true
		}
		_ = rc.SetWriteDeadline(time.Now().Add(patience))
		if enc.Encode(l) != nil || rc.Flush() != nil {
			cancel()
		}
	}
	r, err := s.from.Verdict(ctx, d, func(done time.Duration) { send(verdictLine{Watched: done.Seconds()}) })
	switch {
	case err == nil:
		send(verdictLine{Report: r})
	case ctx.Err() != nil && req.Context().Err() == nil:
		send(verdictLine{Notice: Notice{Notice: "the agent stops"}})
	case begun:
		send(verdictLine{Failed: err.Error()})
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// Verdict has the agent watch the disks for d and say what holds them up. It calls
// tell with how long it has watched.
func (c *Client) Verdict(ctx context.Context, d time.Duration, tell func(time.Duration)) (*judge.Report, error) {
	body, err := c.get(ctx, "verdict?for="+url.QueryEscape(d.String()))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	const most = 64 << 20 // of a line
	limit := &io.LimitedReader{R: body, N: most}
	in := json.NewDecoder(limit)
	for {
		var line verdictLine
		limit.N = most
		err := in.Decode(&line)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("control socket %s: the agent went away", c.path)
		case err != nil:
			return nil, fmt.Errorf("control socket %s: verdict: %w", c.path, err)
		case line.Failed != "":
			return nil, errors.New(line.Failed)
		case line.Notice.Notice != "":
			return nil, errors.New(line.Notice.Notice)
		case line.Report != nil:
			return line.Report, nil
		}
		if tell != nil {
			tell(time.Duration(line.Watched * float64(time.Second)))
		}
	}
}
