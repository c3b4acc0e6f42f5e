package bugtool

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// TestNativeFiles reads spans that the real xapi and xenopsd wrote and encodes
// them again: the bytes must be the same.
func TestNativeFiles(t *testing.T) {
	fd, err := os.Open("testdata/native.ndjson.zst")
	qt.Assert(t, qt.IsNil(err))
	defer fd.Close()
	z, err := zstd.NewReader(fd)
	qt.Assert(t, qt.IsNil(err))
	defer z.Close()
	sc := bufio.NewScanner(z)
	sc.Buffer(nil, 8<<20)
	spans, lines := 0, 0
	for sc.Scan() {
		lines++
		var raw []json.RawMessage
		qt.Assert(t, qt.IsNil(json.Unmarshal(sc.Bytes(), &raw)))
		out := []byte{'['}
		for i, r := range raw {
			if i > 0 {
				out = append(out, ',')
			}
			s, tags := decodeNative(t, r)
			one := AppendSpan(nil, s, s.ParentID, tags)
			qt.Assert(t, qt.Equals(string(one), string(r)))
			out = append(out, one...)
			spans++

			// The toolstack's order of tags is ours, but for the baggage, which
			// it puts behind.
			depth := slices.IndexFunc(tags, func(kv attribute.KeyValue) bool { return kv.Key == "span.depth" })
			if depth >= 0 {
				tags = slices.Delete(tags, depth, depth+1)
			}
			qt.Assert(t, qt.IsTrue(slices.IsSortedFunc(tags, func(a, b attribute.KeyValue) int { return strings.Compare(string(b.Key), string(a.Key)) })))
		}
		qt.Assert(t, qt.Equals(string(append(out, ']')), sc.Text()))
	}
	qt.Assert(t, qt.IsNil(sc.Err()))
	t.Logf("%d spans in %d lines", spans, lines)
	qt.Assert(t, qt.IsTrue(spans > 700))
}

// decodeNative reads one span with its tags in the order of the file.
func decodeNative(t *testing.T, raw []byte) (*correlate.Span, []attribute.KeyValue) {
	t.Helper()
	var in struct {
		Tags          json.RawMessage
		LocalEndpoint struct{ ServiceName string }
		Kind          string
		Duration      int64
		Timestamp     int64
		Name          string
		ParentID      string
		TraceID       string
		ID            string
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal(raw, &in)))
	s := &correlate.Span{Service: in.LocalEndpoint.ServiceName, Name: in.Name, Start: in.Timestamp * 1000, End: (in.Timestamp + in.Duration) * 1000,
		TraceID: traceID(in.TraceID), SpanID: spanID(in.ID)}
	if in.ParentID != "" {
		s.ParentID = spanID(in.ParentID)
	}
	s.Kind = map[string]trace.SpanKind{"": trace.SpanKindInternal, "SERVER": trace.SpanKindServer, "CLIENT": trace.SpanKindClient,
		"PRODUCER": trace.SpanKindProducer, "CONSUMER": trace.SpanKindConsumer}[in.Kind]
	var tags []attribute.KeyValue
	d := json.NewDecoder(strings.NewReader(string(in.Tags)))
	_, err := d.Token()
	qt.Assert(t, qt.IsNil(err))
	for d.More() {
		k, err := d.Token()
		qt.Assert(t, qt.IsNil(err))
		v, err := d.Token()
		qt.Assert(t, qt.IsNil(err))
		tags = append(tags, attribute.String(k.(string), v.(string)))
	}
	return s, tags
}
