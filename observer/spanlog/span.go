package spanlog

import (
	"log/slog"
	"math"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
)

// Messages of the two records of a span.
const (
	Begin = "span begin"
	End   = "span end"
)

// Longest strings in bytes, those of the bugtool's files.
const (
	maxName  = 1 << 10
	maxValue = 8 << 10
)

// span is one span as it may leave: all but ids, name, kind and times comes from
// its final tags, so that what an Observer redacts is redacted here too.
type span struct {
	*correlate.Span
	parent  trace.SpanID
	service string
	failure string // "": it did not fail
	tags    []attribute.KeyValue
	group   []slog.Attr // scratch
}

func (s *span) set(r *export.Record) {
	s.Span, s.parent = r.Span, r.ParentID()
	s.tags = r.AppendTags(s.tags[:0])
	s.service, s.failure = "", ""
	if r.Span.Error != "" {
		s.failure = "failed"
	}
	for _, t := range s.tags {
		switch t.Key {
		case export.KeyServiceName:
			s.service = t.Value.String()
		case export.KeyExceptionMessage:
			if r.Span.Error != "" {
				s.failure = t.Value.String()
			}
		}
	}
}

// clear lets go of the span.
func (s *span) clear() {
	clear(s.tags[:cap(s.tags)])
	clear(s.group[:cap(s.group)])
	s.Span = nil
}

func (s *span) begin() slog.Record {
	r := slog.NewRecord(time.Unix(0, s.Start).UTC(), slog.LevelInfo, Begin, 0)
	s.identity(&r)
	return r
}

func (s *span) end() slog.Record {
	level := slog.LevelInfo
	if s.failure != "" {
		level = slog.LevelError
	}
	r := slog.NewRecord(time.Unix(0, max(s.End, s.Start)).UTC(), level, End, 0)
	s.identity(&r)
	r.AddAttrs(slog.Int64("duration_us", s.micros()))
	if s.failure != "" {
		r.AddAttrs(slog.String("error", short(s.failure, maxValue)))
	}
	s.group = s.group[:0]
	for _, t := range s.tags {
		s.group = append(s.group, slog.Attr{Key: short(string(t.Key), maxName), Value: value(t.Value)})
	}
	r.AddAttrs(slog.Attr{Key: "tags", Value: slog.GroupValue(s.group...)})
	return r
}

func (s *span) identity(r *slog.Record) {
	r.AddAttrs(slog.String("trace_id", s.TraceID.String()), slog.String("span_id", s.SpanID.String()))
	if s.parent.IsValid() {
		r.AddAttrs(slog.String("parent_id", s.parent.String()))
	}
	r.AddAttrs(slog.String("service.name", short(s.service, maxName)), slog.String("name", short(s.Name, maxName)), slog.String("kind", kind(s.Kind)))
}

// micros is how long the span took, in µs.
func (s *span) micros() int64 { return (max(s.End, s.Start) - s.Start) / 1000 }

func kind(k trace.SpanKind) string { return trace.ValidateSpanKind(k).String() }

func value(v attribute.Value) slog.Value {
	switch v.Type() {
	case attribute.INT64:
		return slog.Int64Value(v.AsInt64())
	case attribute.BOOL:
		return slog.BoolValue(v.AsBool())
	case attribute.FLOAT64:
		if f := v.AsFloat64(); !math.IsNaN(f) && !math.IsInf(f, 0) { // JSON has no others
			return slog.Float64Value(f)
		}
	}
	return slog.StringValue(short(v.String(), maxValue))
}

// short cuts s to max bytes, at a rune, and marks that with "…".
func short(s string, max int) string {
	const ellipsis = "…"
	if len(s) <= max {
		return s
	}
	end := max - len(ellipsis)
	for i := 0; i < utf8.UTFMax && end > 0 && !utf8.RuneStart(s[end]); i++ {
		end--
	}
	return s[:end] + ellipsis
}
