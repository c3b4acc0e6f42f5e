package bugtool

import (
	"encoding/hex"
	"strconv"
	"unicode/utf8"

	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// Longest strings that are written, in bytes; what is longer is cut at a rune
// and ends in "…".
const (
	MaxName  = 1 << 10
	MaxValue = 8 << 10
)

const ellipsis = "…"

// AppendSpan appends one zipkin-v2 span, the child of parent, to dst with the keys
// in the order, and the strings in the escaping, of the toolstack's own files
// (tracing_export.ml, Yojson): tags as they are given, annotations, localEndpoint, kind (not for
// INTERNAL), duration, timestamp, name, parentId (not for roots), traceId, id.
// Times are truncated to microseconds. Bytes that are not UTF-8 become U+FFFD,
// so that the line is JSON whatever a caller sent. It does not allocate when
// dst has room and the tags are strings, numbers or booleans.
func AppendSpan(dst []byte, s *correlate.Span, parent trace.SpanID, tags []attribute.KeyValue) []byte {
	dst = append(dst, `{"tags":{`...)
	for i, t := range tags {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, string(t.Key), MaxName), ':')
		dst = appendValue(dst, t.Value)
	}
	dst = append(dst, `},"annotations":[],"localEndpoint":{"serviceName":`...)
	dst = appendString(dst, s.Service, MaxName)
	dst = append(dst, '}')
	if k := kindName(s.Kind); k != "" {
		dst = append(dst, `,"kind":"`...)
		dst = append(dst, k...)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"duration":`...)
	dst = strconv.AppendInt(dst, max(s.End-s.Start, 0)/1000, 10)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, s.Start/1000, 10)
	dst = append(dst, `,"name":`...)
	dst = appendString(dst, s.Name, MaxName)
	if parent.IsValid() {
		dst = append(dst, `,"parentId":"`...)
		dst = append(hex.AppendEncode(dst, parent[:]), '"')
	}
	dst = append(dst, `,"traceId":"`...)
	dst = hex.AppendEncode(dst, s.TraceID[:])
	dst = append(dst, `","id":"`...)
	dst = hex.AppendEncode(dst, s.SpanID[:])
	return append(dst, `"}`...)
}

func kindName(k trace.SpanKind) string {
	switch k {
	case trace.SpanKindServer:
		return "SERVER"
	case trace.SpanKindClient:
		return "CLIENT"
	case trace.SpanKindProducer:
		return "PRODUCER"
	case trace.SpanKindConsumer:
		return "CONSUMER"
	}
	return ""
}

// appendValue appends v as a string: zipkin tags have no other type.
func appendValue(dst []byte, v attribute.Value) []byte {
	switch v.Type() {
	case attribute.STRING:
		return appendString(dst, v.AsString(), MaxValue)
	case attribute.INT64:
		dst = strconv.AppendInt(append(dst, '"'), v.AsInt64(), 10)
	case attribute.BOOL:
		dst = strconv.AppendBool(append(dst, '"'), v.AsBool())
	case attribute.FLOAT64:
		dst = strconv.AppendFloat(append(dst, '"'), v.AsFloat64(), 'g', -1, 64)
	default:
		return appendString(dst, v.String(), MaxValue)
	}
	return append(dst, '"')
}

// plain tells the ASCII bytes that stand for themselves in a string. Yojson
// escapes DEL besides what JSON asks for.
var plain = func() (t [utf8.RuneSelf]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c != '"' && c != '\\' && c != 0x7f
	}
	return t
}()

func appendString(dst []byte, s string, limit int) []byte {
	cut := len(s) > limit
	if cut {
		s = s[:limit-len(ellipsis)]
		// Drop a rune that the cut broke, and no more than that.
		for i := 1; i <= utf8.UTFMax && i <= len(s); i++ {
			if c := s[len(s)-i]; utf8.RuneStart(c) {
				if c >= utf8.RuneSelf && !utf8.FullRuneInString(s[len(s)-i:]) {
					s = s[:len(s)-i]
				}
				break
			}
		}
	}
	dst = append(dst, '"')
	start := 0 // of the run of bytes not yet copied
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if plain[c] {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = appendEscape(dst, c)
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, s[start:i]...)
			dst = append(dst, "\uFFFD"...)
			i++
			start = i
			continue
		}
		i += n
	}
	dst = append(dst, s[start:]...)
	if cut {
		dst = append(dst, ellipsis...)
	}
	return append(dst, '"')
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	}
	const digits = "0123456789abcdef"
	return append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
}
