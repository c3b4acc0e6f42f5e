package metrics

import (
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/xenserver/dtagent/correlate"
)

// maxLabel is the longest value of a label in bytes; span names come from
// callers.
const maxLabel = 128

// series holds the attributes of an Observer's series, so that they are made
// once.
type series struct {
	max    int
	take   func() bool // whether all Observers together may have one more
	points map[seriesKey]*point
	over   *point // that of the series for what has none of its own
}

type seriesKey struct {
	service, name string
	kind          trace.SpanKind
	failed        bool
}

// point is how one series is named to the instruments.
type point struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

func (s *series) of(service string, sp *correlate.Span) *point {
	key := seriesKey{service: label(service), name: label(sp.Name), kind: sp.Kind, failed: sp.Error != ""}
	if p := s.points[key]; p != nil {
		return p
	}
	if len(s.points) >= s.max || !s.take() {
		if s.over == nil {
			// As the SDK marks what is beyond its own limit.
			s.over = pointOf(attribute.Bool("otel.metric.overflow", true))
		}
		return s.over
	}
	if s.points == nil {
		s.points = map[seriesKey]*point{}
	}
	key.service, key.name = strings.Clone(key.service), strings.Clone(key.name)
	p := newPoint(key)
	s.points[key] = p
	return p
}

func newPoint(k seriesKey) *point {
	status := "STATUS_CODE_UNSET"
	if k.failed {
		status = "STATUS_CODE_ERROR"
	}
	return pointOf(
		attribute.String("service.name", k.service),
		attribute.String("span.name", k.name),
		attribute.String("span.kind", kindName(k.kind)),
		attribute.String("status.code", status),
	)
}

func pointOf(attrs ...attribute.KeyValue) *point {
	set := metric.WithAttributeSet(attribute.NewSet(attrs...))
	return &point{add: []metric.AddOption{set}, record: []metric.RecordOption{set}}
}

// kindName names a kind as the Collector does.
func kindName(k trace.SpanKind) string {
	switch k {
	case trace.SpanKindServer:
		return "SPAN_KIND_SERVER"
	case trace.SpanKindClient:
		return "SPAN_KIND_CLIENT"
	case trace.SpanKindProducer:
		return "SPAN_KIND_PRODUCER"
	case trace.SpanKindConsumer:
		return "SPAN_KIND_CONSUMER"
	}
	return "SPAN_KIND_INTERNAL"
}

// label returns s as the value of a label: UTF-8, which both formats ask for,
// and not longer than maxLabel; what is cut ends in "…".
func label(s string) string {
	const ellipsis = "…"
	if len(s) <= maxLabel && utf8.ValidString(s) {
		return s
	}
	if len(s) > maxLabel {
		// A rune that the cut broke is not UTF-8 and goes with it.
		cut := s[:maxLabel-len(ellipsis)]
		for i := 1; i < utf8.UTFMax && i < len(cut); i++ {
			if last := cut[len(cut)-i:]; utf8.RuneStart(last[0]) {
				if !utf8.FullRuneInString(last) {
					cut = cut[:len(cut)-i]
				}
				break
			}
		}
		s = cut + ellipsis
	}
	if s = strings.ToValidUTF8(s, "\uFFFD"); len(s) > maxLabel {
		return label(s) // U+FFFD is longer than what it stands for
	}
	return s
}
