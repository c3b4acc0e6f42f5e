package client

import (
	"context"
	"fmt"
	"time"
)

// Events is an answer of event.from.
type Events struct {
	Events []Event
	Counts map[string]int // valid_ref_counts, by class in lower case
	Token  string
}

// Event is one of them.
type Event struct {
	ID        string
	Class     string
	Operation string // add, mod, del
	Ref       string
	Snapshot  map[string]any // nil for del
}

// Events calls event.from: it waits for changes of the classes after token, at most
// for timeout. Token "" is before everything.
func (c *Client) Events(ctx context.Context, session, token string, timeout time.Duration, classes ...string) (Events, error) {
	v, err := c.Call(ctx, "event.from", session, list(classes), token, timeout.Seconds())
	if err != nil {
		return Events{}, err
	}
	r, ok := v.(map[string]any)
	if !ok {
		return Events{}, fmt.Errorf("event.from: %T", v)
	}
	out := Events{Counts: map[string]int{}}
	out.Token, _ = r["token"].(string)
	counts, _ := r["valid_ref_counts"].(map[string]any)
	for class, n := range counts {
		if f, ok := n.(float64); ok {
			out.Counts[class] = int(f)
		}
	}
	all, _ := r["events"].([]any)
	for _, a := range all {
		e, ok := a.(map[string]any)
		if !ok {
			return Events{}, fmt.Errorf("event.from: event is %T", a)
		}
		text := func(name string) string {
			s, _ := e[name].(string)
			return s
		}
		one := Event{ID: text("id"), Class: text("class"), Operation: text("operation"), Ref: text("ref")}
		one.Snapshot, _ = e["snapshot"].(map[string]any)
		out.Events = append(out.Events, one)
	}
	return out, nil
}
