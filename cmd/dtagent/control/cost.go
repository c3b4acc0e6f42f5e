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
)

// MaxCost is the longest that costs are measured for.
const MaxCost = 10 * time.Minute

// Cost is what the attached programs took while it was measured, on all CPUs.
type Cost struct {
	Seconds   float64     `json:"seconds"`   // how long was measured
	CPUs      int         `json:"cpus"`      // that the machine has
	Estimated bool        `json:"estimated"` // reckoned from runs and records: the kernel keeps no statistics, or the legacy programs are loaded
	Probes    []ProbeCost `json:"probes"`
}

// ProbeCost is that of one probe.
type ProbeCost struct {
	Probe string `json:"probe"`
	Runs  uint64 `json:"runs"`     // of its programs
	Own   uint64 `json:"own_ns"`   // in the programs
	Entry uint64 `json:"entry_ns"` // on the kernel's way to them and back
}

// Share returns the part of the machine's CPUs that the programs took.
func (c *Cost) Share() float64 {
	var ns uint64
	for _, p := range c.Probes {
		ns += p.Own + p.Entry
	}
	if c.Seconds <= 0 || c.CPUs <= 0 {
		return 0
	}
	return float64(ns) / 1e9 / c.Seconds / float64(c.CPUs)
}

func (s *Server) serveCost(w http.ResponseWriter, req *http.Request) {
	d, err := time.ParseDuration(req.URL.Query().Get("for"))
	if err == nil && (d <= 0 || d > MaxCost) {
		err = fmt.Errorf("for=%v: from 1ns to %v", d, MaxCost)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	rc, ctx, cancel := s.takesLong(w, req)
	defer cancel()
	c, err := s.from.Cost(ctx, d)
	_ = rc.SetWriteDeadline(time.Now().Add(patience))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(c)
}

// Cost has the agent measure for d, MaxCost at most, what its programs cost.
func (c *Client) Cost(ctx context.Context, d time.Duration) (*Cost, error) {
	if d <= 0 || d > MaxCost {
		return nil, fmt.Errorf("measure for %v: a time from 1ns to %v", d, MaxCost)
	}
	ctx, cancel := context.WithTimeout(ctx, d+2*patience)
	defer cancel()
	slow := &Client{path: c.path, http: http.Client{Transport: &http.Transport{DialContext: dialer(c.path), DisableKeepAlives: true}}}
	body, err := slow.get(ctx, "cost?"+url.Values{"for": {d.String()}}.Encode())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var out Cost
	if err := json.NewDecoder(io.LimitReader(body, 1<<20)).Decode(&out); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket %s: cost", c.path), err)
	}
	return &out, nil
}
