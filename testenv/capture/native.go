package capture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// NativeSpan is a span that the toolstack itself wrote (zipkin v2), with what
// a comparison needs.
type NativeSpan struct {
	TraceID   string            `json:"traceId"`
	ID        string            `json:"id"`
	ParentID  string            `json:"parentId,omitempty"`
	Name      string            `json:"name"`
	Kind      string            `json:"kind,omitempty"` // "" is INTERNAL
	Timestamp int64             `json:"timestamp"`      // microseconds
	Duration  int64             `json:"duration"`       // microseconds
	Endpoint  NativeEndpoint    `json:"localEndpoint"`
	Tags      map[string]string `json:"tags,omitempty"`
}

// NativeEndpoint names the daemon.
type NativeEndpoint struct {
	ServiceName string `json:"serviceName"`
}

// Start returns ns since 1970.
func (s *NativeSpan) Start() int64 { return s.Timestamp * 1e3 }

// End returns ns since 1970.
func (s *NativeSpan) End() int64 { return (s.Timestamp + s.Duration) * 1e3 }

// ReadNative reads the lines of a bugtool file, each an array of spans.
func ReadNative(r io.Reader) ([]NativeSpan, error) {
	var out []NativeSpan
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var spans []NativeSpan
			if err := json.Unmarshal(line, &spans); err != nil {
				return nil, fmt.Errorf("native spans: line %d: %w", n, err)
			}
			out = append(out, spans...)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("native spans: %w", err)
		}
	}
}

// keptTag tells whether a fixture keeps a tag. None that it keeps can hold a
// secret.
func keptTag(k string) bool {
	switch k {
	case "xs.xapi.task.id", "xs.xapi.task.name", "xs.xapi.task.origin", "rpc.method", "http.request.header.traceparent",
		"messaging.destination.name", "messaging.operation.name":
		return true
	}
	return false
}

// compared tells whether a span has a counterpart among dtagent's.
func (s *NativeSpan) compared() bool {
	switch {
	case s.Endpoint.ServiceName == "xenopsd", s.Kind == "PRODUCER", s.Tags["xs.xapi.task.origin"] == "http", strings.HasPrefix(s.Name, "xe "):
		return true
	}
	switch s.Name {
	case "Http_svr.read_request", "Http_svr.handle_one", "Http_svr.response_fct":
		return true
	}
	return false
}

// CutNative leaves the spans that are compared and their ancestors, with the
// tags that a comparison needs.
func CutNative(spans []NativeSpan) []NativeSpan {
	byID := make(map[string]*NativeSpan)
	for i := range spans {
		byID[spans[i].ID] = &spans[i]
	}
	keep := make(map[string]bool)
	for i := range spans {
		if !spans[i].compared() {
			continue
		}
		for s := &spans[i]; s != nil && !keep[s.ID]; s = byID[s.ParentID] {
			keep[s.ID] = true
		}
	}
	var out []NativeSpan
	for _, s := range spans {
		if !keep[s.ID] {
			continue
		}
		s.Tags = maps.Clone(s.Tags)
		maps.DeleteFunc(s.Tags, func(k, _ string) bool { return !keptTag(k) })
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b NativeSpan) int { return int(a.Timestamp - b.Timestamp) })
	return out
}
