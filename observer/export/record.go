// Package export is the seam between Observers and the exporters that carry
// their spans: what an exporter is given, and how it reports what became of it.
package export

import (
	"cmp"
	"context"
	"slices"

	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Tags that dtagent adds to every span from the fields of correlate.Span.
const (
	KeyServiceName      attribute.Key = "service.name"
	KeyScopeName        attribute.Key = "otel.scope.name"
	KeyLinkMethod       attribute.Key = "dt.link.method"
	KeyIncomplete       attribute.Key = "dt.incomplete"
	KeyError            attribute.Key = "error"
	KeyExceptionMessage attribute.Key = "exception.message"
	KeyExceptionType    attribute.Key = "exception.type"
	// KeyTraceState is the tag by which the OpenTelemetry Collector's zipkin
	// translator carries the W3C tracestate, for which zipkin has no field.
	KeyTraceState attribute.Key = "w3c.tracestate"
	// KeyLocalSpan is the tag with the id of the parent among dtagent's own spans
	// of a span that hangs under one of the toolstack's.
	KeyLocalSpan attribute.Key = "dt.local.span_id"
)

// Record is one span on its way to one endpoint of one Observer.
type Record struct {
	Span *correlate.Span
	// Attributes of the Observer: its defaults and the user's. Shared by all
	// records and never changed; in descending key order, each key once.
	Attributes []attribute.KeyValue
	// Edit changes the final tags; nil: nothing. Shared by all records.
	Edit *Edit
	// UnderNative hangs the span under the toolstack's own, where one is known.
	UnderNative bool
}

// ParentID returns the id of the span's parent, zero if it has none: that of
// another of dtagent's spans or of the caller's, or, with UnderNative, of the span
// of the toolstack's own tracing that it lies under.
func (r *Record) ParentID() trace.SpanID {
	if r.UnderNative && r.Span.Native.IsValid() {
		return r.Span.Native
	}
	return r.Span.ParentID
}

// AppendTags appends the final tags of the record's span to dst and returns
// it: in descending key order, as the toolstack writes them, and each key once.
// It does not allocate when dst has room.
//
// When one key comes from several places the later of this list wins: the
// exception tags made from Span.Error; the span's own attributes (which may hold
// baggage that a caller sent, so they cannot pass for the host's identity); its links,
// by LinkKeys; the span's service.name; the Observer's defaults; the user's attributes; and the
// tags that say how far the span can be trusted (error, dt.link.method,
// dt.incomplete). Edit then changes what came of it.
func (r *Record) AppendTags(dst []attribute.KeyValue) []attribute.KeyValue {
	s, start := r.Span, len(dst)
	if s.Error != "" {
		dst = append(dst, KeyExceptionMessage.String(s.Error), KeyExceptionType.String(s.Error))
	}
	dst = append(dst, s.Attributes...)
	dst = appendLinks(dst, s)
	dst = append(dst, KeyServiceName.String(s.Service))
	if s.TraceState != "" {
		dst = append(dst, KeyTraceState.String(s.TraceState))
	}
	if p := r.ParentID(); p != s.ParentID {
		dst = append(dst, KeyLocalSpan.String(s.ParentID.String()))
	}
	if s.Error != "" {
		dst = append(dst, KeyError.String("true"))
	}
	link := s.Link
	if link == "" {
		link = correlate.LinkNone
	}
	dst = append(dst, KeyLinkMethod.String(string(link)))
	if s.Incomplete != "" {
		dst = append(dst, KeyIncomplete.String(s.Incomplete))
	}
	dst = dst[:start+len(SortTags(dst[start:]))]
	dst = mergeTags(dst, start, r.Attributes, s)
	if r.Edit != nil {
		dst = dst[:start+len(r.Edit.apply(dst[start:]))]
	}
	return dst
}

// mergeTags merges the Observer's tags, which are sorted already, into
// dst[start:]: from the end, so that nothing is overwritten before it is read.
func mergeTags(dst []attribute.KeyValue, start int, tags []attribute.KeyValue, s *correlate.Span) []attribute.KeyValue {
	i, j := len(dst)-1, len(tags)-1
	dst = append(dst, tags...) // room
	w := len(dst)
	for j >= 0 {
		w--
		switch {
		case i < start || tags[j].Key < dst[i].Key:
			dst[w] = tags[j]
			j--
		case tags[j].Key > dst[i].Key:
			dst[w] = dst[i]
			i--
		default:
			if trust(tags[j].Key, s) {
				dst[w] = dst[i]
			} else {
				dst[w] = tags[j]
			}
			i--
			j--
		}
	}
	// dst[start:i+1] is in its place; close the gap that equal keys left.
	n := copy(dst[i+1:], dst[w:])
	return dst[:i+1+n]
}

// trust tells the tags that no attribute overrides.
func trust(k attribute.Key, s *correlate.Span) bool {
	return k == KeyLinkMethod || k == KeyIncomplete && s.Incomplete != "" || k == KeyError && s.Error != ""
}

// SortTags puts tags into descending key order in place and keeps the last of
// those with equal keys. Tags without a key are left out.
func SortTags(tags []attribute.KeyValue) []attribute.KeyValue {
	slices.SortStableFunc(tags, func(a, b attribute.KeyValue) int { return cmp.Compare(b.Key, a.Key) })
	out := tags[:0]
	for i := range tags {
		if tags[i].Key == "" || i+1 < len(tags) && tags[i+1].Key == tags[i].Key {
			continue
		}
		out = append(out, tags[i])
	}
	return out
}

// Exporter carries spans to one endpoint. Its methods are called by one
// goroutine at a time.
type Exporter interface {
	// Export delivers the batch, which is not empty and belongs to the caller
	// again when Export returns. It returns nil when every record was delivered,
	// else a *Failure. A done context ends it soon.
	Export(ctx context.Context, batch []*Record) error
	// Close frees what the exporter holds. Nothing is exported after it.
	Close() error
}

// Holder is an Exporter with a queue of its own, on disk, that outlives the
// agent. Its Export returns nil when it has taken the batch over; from then on it
// tells the Ledger that it was made with what becomes of the records. What its
// Export refuses is for the caller to account for, as with any Exporter.
//
// Holding, Flush and Discard may be called by any goroutine until Close. Close
// ends sending at once; what is held then stays on disk for the next agent.
type Holder interface {
	Exporter
	// Holding returns how many records are held.
	Holding() int
	// Flush asks for what is held to be sent now, not when the next batch is due,
	// and returns when nothing is held any more or ctx is done.
	Flush(ctx context.Context)
	// Discard drops what is held, and tells the Ledger that cause.
	Discard(Cause)
}
