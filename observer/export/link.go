package export

import (
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/attribute"
)

// Keys of the attributes of a link, for forms that have links.
const (
	KeyLinkName   attribute.Key = "dt.link.name"   // of the span that is linked to
	KeyLinkObject attribute.Key = "dt.link.object" // what both work at: vm, vdi, sr, chain
)

// LinkKeys are the tags by which forms without links, such as zipkin's, carry one.
type LinkKeys struct{ TraceID, SpanID, Name, Object attribute.Key }

// linkPrefix begins those of all links; a number from 1 and a dot follow.
const linkPrefix = "dt.link."

var linkKeys = func() (keys [16]LinkKeys) { // more than correlate gives
	for i := range keys {
		p := attribute.Key(linkPrefix + strconv.Itoa(i+1))
		keys[i] = LinkKeys{p + ".trace_id", p + ".span_id", p + ".name", p + ".object"}
	}
	return keys
}()

// LinkKeysOf returns the keys of the i-th link of a span, from 0.
func LinkKeysOf(i int) LinkKeys { return linkKeys[i] }

// Links returns those links of a span that have tags.
func Links(s *correlate.Span) []correlate.SpanLink { return s.Links[:min(len(s.Links), len(linkKeys))] }

// IsLinkTag tells the keys of LinkKeys.
func IsLinkTag(k attribute.Key) bool {
	rest, ok := strings.CutPrefix(string(k), linkPrefix)
	return ok && len(rest) > 0 && '1' <= rest[0] && rest[0] <= '9'
}

func appendLinks(dst []attribute.KeyValue, s *correlate.Span) []attribute.KeyValue {
	for i, l := range Links(s) {
		k := LinkKeysOf(i)
		dst = append(dst, k.TraceID.String(l.TraceID.String()), k.SpanID.String(l.SpanID.String()), k.Name.String(l.Name), k.Object.String(l.Object))
	}
	return dst
}
