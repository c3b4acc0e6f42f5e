// Package zipkin holds spans as the bugtool files and the trace stream of the
// agent carry them: zipkin-v2 JSON.
//
// It only reads what tools show to people. What the agent exports is encoded
// by package observer.
package zipkin

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
)

// Span is one span in zipkin-v2 form.
type Span struct {
	TraceID   string            `json:"traceId"`
	ID        string            `json:"id"`
	ParentID  string            `json:"parentId,omitempty"`
	Kind      string            `json:"kind,omitempty"`
	Name      string            `json:"name"`
	Timestamp int64             `json:"timestamp"` // µs since 1970
	Duration  int64             `json:"duration"`  // µs
	Local     Endpoint          `json:"localEndpoint"`
	Tags      map[string]string `json:"tags,omitempty"`

	Annotations []Annotation `json:"annotations,omitempty"`
}

// Annotation is a span event.
type Annotation struct {
	Timestamp int64  `json:"timestamp"` // µs since 1970
	Value     string `json:"value"`
}

// Endpoint names the service of a span.
type Endpoint struct {
	ServiceName string `json:"serviceName"`
}

// Start is when the span began.
func (s *Span) Start() time.Time { return time.UnixMicro(s.Timestamp) }

// Length is how long the span took.
func (s *Span) Length() time.Duration { return time.Duration(s.Duration) * time.Microsecond }

// End is when the span ended, in µs since 1970.
func (s *Span) End() int64 { return s.Timestamp + s.Duration }

// Service is the name of the span's service.
func (s *Span) Service() string { return s.Local.ServiceName }

// Link is the method by which dtagent found the parent, "" for spans of others.
func (s *Span) Link() string { return s.Tags["dt.link.method"] }

// Incomplete is the cause for which parts of the span were not seen, "" if
// all of it was.
func (s *Span) Incomplete() string { return s.Tags["dt.incomplete"] }

// Error is the failure that the span ended with, "" if it did not fail.
func (s *Span) Error() string {
	e, ok := s.Tags["error"]
	if !ok {
		return ""
	}
	if e == "true" || e == "" { // as the toolstack marks its own spans
		if m := s.Tags["exception.message"]; m != "" {
			return m
		}
		if m := s.Tags["error.type"]; m != "" {
			return m
		}
		return "failed"
	}
	return e
}

// FromSpan turns a span of the engine into the form of the trace stream. It
// holds what every Observer would get, without an Observer's own attributes.
func FromSpan(s *correlate.Span) Span {
	z := Span{
		TraceID:   s.TraceID.String(),
		ID:        s.SpanID.String(),
		Name:      s.Name,
		Timestamp: s.Start / 1000,
		Duration:  s.End/1000 - s.Start/1000,
		Local:     Endpoint{ServiceName: s.Service},
		Tags:      make(map[string]string, len(s.Attributes)+6),
	}
	if s.ParentID.IsValid() {
		z.ParentID = s.ParentID.String()
	}
	if s.Kind != trace.SpanKindInternal && s.Kind != trace.SpanKindUnspecified {
		z.Kind = strings.ToUpper(s.Kind.String())
	}
	record := export.Record{Span: s}
	for _, a := range record.AppendTags(nil) {
		z.Tags[string(a.Key)] = a.Value.String()
	}
	return z
}

// Parse reads one line of a bugtool file (an array of spans) or of the trace
// stream (one span). A blank line gives none.
func Parse(line []byte) ([]Span, error) {
	trimmed := strings.TrimLeft(string(line[:min(len(line), 64)]), " \t\r\n")
	if trimmed == "" && len(strings.TrimSpace(string(line))) == 0 {
		return nil, nil
	}
	var spans []Span
	if strings.HasPrefix(trimmed, "{") {
		spans = make([]Span, 1)
		if err := json.Unmarshal(line, &spans[0]); err != nil {
			return nil, fmt.Errorf("span: %w", err)
		}
	} else if err := json.Unmarshal(line, &spans); err != nil {
		return nil, fmt.Errorf("array of spans: %w", err)
	}
	for i := range spans {
		if err := spans[i].check(); err != nil {
			return nil, err
		}
	}
	return spans, nil
}

// check refuses what no reader of zipkin-v2 accepts.
func (s *Span) check() error {
	switch {
	case !hex(s.TraceID, 16, 32):
		return fmt.Errorf("span %.40q: traceId %.40q is not 16 or 32 hex digits", s.Name, s.TraceID)
	case !hex(s.ID, 16, 16):
		return fmt.Errorf("span %.40q: id %.40q is not 16 hex digits", s.Name, s.ID)
	case s.ParentID != "" && !hex(s.ParentID, 16, 16):
		return fmt.Errorf("span %.40q: parentId %.40q is not 16 hex digits", s.Name, s.ParentID)
	case s.Timestamp < 0 || s.Timestamp > maxMicros || s.Duration < -maxMicros || s.Duration > maxMicros:
		return fmt.Errorf("span %.40q: timestamp %d or duration %d is out of range", s.Name, s.Timestamp, s.Duration)
	}
	for _, a := range s.Annotations {
		if a.Timestamp < 0 || a.Timestamp > maxMicros {
			return fmt.Errorf("span %.40q: timestamp %d of an annotation is out of range", s.Name, a.Timestamp)
		}
	}
	return nil
}

// maxMicros keeps sums of time stamps and durations, and their conversion to
// nanoseconds, inside an int64. It is the year 2116.
const maxMicros = 1 << 62 / 1000

func hex(s string, least, most int) bool {
	if len(s) != least && len(s) != most {
		return false
	}
	for i := 0; i < len(s); i += 16 {
		if _, err := strconv.ParseUint(s[i:i+16], 16, 64); err != nil {
			return false
		}
	}
	return true
}
