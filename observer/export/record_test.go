package export

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"go.opentelemetry.io/otel/attribute"
)

// plainTags is AppendTags by the words of its comment.
func plainTags(r *Record) []attribute.KeyValue {
	m := map[attribute.Key]attribute.Value{}
	set := func(kvs ...attribute.KeyValue) {
		for _, kv := range kvs {
			if kv.Key != "" {
				m[kv.Key] = kv.Value
			}
		}
	}
	s := r.Span
	if s.Error != "" {
		set(KeyExceptionMessage.String(s.Error), KeyExceptionType.String(s.Error))
	}
	set(s.Attributes...)
	set(KeyServiceName.String(s.Service))
	if s.TraceState != "" {
		set(KeyTraceState.String(s.TraceState))
	}
	set(r.Attributes...)
	if s.Error != "" {
		set(KeyError.String("true"))
	}
	set(KeyLinkMethod.String(string(s.Link)))
	if s.Incomplete != "" {
		set(KeyIncomplete.String(s.Incomplete))
	}
	var out []attribute.KeyValue
	for k, v := range m {
		out = append(out, attribute.KeyValue{Key: k, Value: v})
	}
	slices.SortFunc(out, func(a, b attribute.KeyValue) int { return strings.Compare(string(b.Key), string(a.Key)) })
	return out
}

func TestAppendTags(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	special := []attribute.Key{KeyServiceName, KeyScopeName, KeyLinkMethod, KeyIncomplete, KeyError, KeyExceptionMessage, KeyExceptionType, KeyTraceState, ""}
	random := func(n int, from string) (out []attribute.KeyValue) {
		for i := range rng.IntN(n) {
			k := attribute.Key(fmt.Sprintf("k%d", rng.IntN(20)))
			if rng.IntN(4) == 0 {
				k = special[rng.IntN(len(special))]
			}
			out = append(out, k.String(fmt.Sprintf("%s %d", from, i)))
		}
		return out
	}
	maybe := func(s string) string {
		if rng.IntN(2) == 0 {
			return ""
		}
		return s
	}
	for range 2000 {
		r := &Record{Attributes: SortTags(random(12, "observer")), Span: &correlate.Span{Service: "xapi", Link: correlate.LinkTask,
			Error: maybe("E"), Incomplete: maybe("I"), TraceState: maybe("T"), Attributes: random(25, "span")}}
		want := plainTags(r)
		head := attribute.String("head", "stays")
		got := r.AppendTags([]attribute.KeyValue{head})
		qt.Assert(t, qt.Equals(got[0].Key, "head"))
		qt.Assert(t, qt.Equals(fmt.Sprint(got[1:]), fmt.Sprint(want)))
	}
}
