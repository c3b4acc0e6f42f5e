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

func show(tags []attribute.KeyValue) string {
	var b strings.Builder
	for _, t := range tags {
		fmt.Fprintf(&b, "%s=%s ", t.Key, t.Value.String())
	}
	return strings.TrimSpace(b.String())
}

func TestEdit(t *testing.T) {
	span := &correlate.Span{Service: "xapi", Link: correlate.LinkTask, Error: "E", Incomplete: "lost", Attributes: []attribute.KeyValue{
		attribute.String("a", "1"), attribute.String("b", "2"), attribute.Int("c", 3)}}
	const plain = "service.name=xapi host=h exception.type=E exception.message=E error=true dt.link.method=task dt.incomplete=lost c=3 b=2 a=1"
	host := []attribute.KeyValue{attribute.String("host", "h")}
	for _, c := range []struct {
		redact []string
		rename map[string]string
		want   string
	}{
		{nil, nil, plain},
		{[]string{"b", "exception.*"}, nil, strings.NewReplacer("b=2", "b=[redacted]", "type=E", "type=[redacted]", "message=E", "message=[redacted]").Replace(plain)},
		{[]string{"*"}, nil, "service.name=xapi host=[redacted] exception.type=[redacted] exception.message=[redacted] error=true dt.link.method=task dt.incomplete=lost c=[redacted] b=[redacted] a=[redacted]"},
		{nil, map[string]string{"a": "z", "host": "xs.host.name"}, "z=1 xs.host.name=h service.name=xapi exception.type=E exception.message=E error=true dt.link.method=task dt.incomplete=lost c=3 b=2"},
		{nil, map[string]string{"a": "b", "b": "a"}, strings.NewReplacer("b=2 a=1", "b=1 a=2").Replace(plain)},
		{nil, map[string]string{"a": "b"}, strings.NewReplacer("b=2 a=1", "b=1").Replace(plain)},
		{nil, map[string]string{"a": "b", "b": "c"}, strings.NewReplacer("c=3 b=2 a=1", "c=2 b=1").Replace(plain)},
		{nil, map[string]string{"host": "service.name"}, strings.NewReplacer("name=xapi host=h", "name=h").Replace(plain)},
		{[]string{"a"}, map[string]string{"a": "b"}, strings.NewReplacer("b=2 a=1", "b=[redacted]").Replace(plain)},
		{[]string{"z"}, map[string]string{"a": "z"}, "z=[redacted] " + strings.TrimSuffix(plain, " a=1")},
		// What tells of trust stays, and nothing takes its place.
		{nil, map[string]string{"error": "x", "dt.link.method": "y", "dt.incomplete": "z", "service.name": "s", "a": "error", "b": "dt.link.method", "c": "dt.incomplete", "": "x", "host": ""}, plain},
	} {
		r := &Record{Span: span, Attributes: host, Edit: NewEdit(c.redact, c.rename)}
		qt.Check(t, qt.Equals(show(r.AppendTags(nil)), c.want), qt.Commentf("%v %v", c.redact, c.rename))
	}
	qt.Check(t, qt.IsNil(NewEdit([]string{"["}, map[string]string{"a": "a", "error": "b"})))
}

// TestEditRandom compares with a map, and looks at order and uniqueness.
func TestEditRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	key := func() string { return fmt.Sprint("k", rng.IntN(30)) }
	for range 3000 {
		rename := map[string]string{}
		targets := map[string]bool{}
		for range rng.IntN(5) {
			if to := key(); !targets[to] { // two to the same key: one of them wins, not told which
				rename[key()] = to
				targets[to] = true
			}
		}
		redact := []string{key(), "k1?"}[:rng.IntN(3)]
		r := &Record{Span: &correlate.Span{Service: "xapi", Link: correlate.LinkTask}}
		for range rng.IntN(20) {
			r.Span.Attributes = append(r.Span.Attributes, attribute.String(key(), fmt.Sprint(rng.Uint32())))
		}
		want := map[string]string{}
		hidden := func(k string) bool {
			return slices.Contains(redact, k) || len(redact) == 2 && len(k) == 3 && k[1] == '1'
		}
		before := r.AppendTags(nil)
		for _, renamed := range []bool{false, true} { // what is renamed wins
			for _, kv := range before {
				from, v := string(kv.Key), kv.Value.AsString()
				to, ok := rename[from]
				if !ok {
					to = from
				}
				ok = ok && to != from
				if ok != renamed {
					continue
				}
				if Editable(kv.Key) && (hidden(from) || hidden(to)) {
					v = Redacted
				}
				want[to] = v
			}
		}
		r.Edit = NewEdit(redact, rename)
		got := r.AppendTags([]attribute.KeyValue{attribute.String("head", "stays")})
		qt.Assert(t, qt.Equals(got[0].Key, "head"))
		got = got[1:]
		m := map[string]string{}
		for i, kv := range got {
			qt.Assert(t, qt.IsTrue(i == 0 || got[i-1].Key > kv.Key))
			m[string(kv.Key)] = kv.Value.AsString()
		}
		qt.Assert(t, qt.DeepEquals(m, want), qt.Commentf("%v %v", redact, rename))
	}
}

func TestEditEqual(t *testing.T) {
	a := NewEdit([]string{"a*"}, map[string]string{"b": "c"})
	qt.Check(t, qt.IsTrue(a.Equal(NewEdit([]string{"a*"}, map[string]string{"b": "c"}))))
	qt.Check(t, qt.IsFalse(a.Equal(NewEdit([]string{"a*"}, map[string]string{"b": "d"}))))
	qt.Check(t, qt.IsFalse(a.Equal(NewEdit([]string{"b*"}, map[string]string{"b": "c"}))))
	qt.Check(t, qt.IsFalse(a.Equal(nil)))
	qt.Check(t, qt.IsTrue((*Edit)(nil).Equal(nil)))
}

func BenchmarkAppendTags(b *testing.B) {
	r := &Record{Span: &correlate.Span{Service: "xapi", Link: correlate.LinkTask}, Attributes: SortTags([]attribute.KeyValue{
		attribute.String("xs.pool.uuid", "p"), attribute.String("xs.host.name", "n"), attribute.String("xs.host.uuid", "u"),
		attribute.String("xs.observer.name", "o"), attribute.String("xs.observer.uuid", "v"), KeyScopeName.String("dtagent")})}
	for i := range 10 {
		r.Span.Attributes = append(r.Span.Attributes, attribute.String(fmt.Sprint("rpc.attribute.", i), "value"))
	}
	for _, c := range []struct {
		name string
		edit *Edit
	}{
		{"plain", nil},
		{"redact", NewEdit([]string{"enduser.*", "client.address", "*secret*"}, nil)},
		{"rename", NewEdit(nil, map[string]string{"xs.host.name": "host.name", "rpc.attribute.3": "three"})},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			r.Edit = c.edit
			dst := make([]attribute.KeyValue, 0, 64)
			for b.Loop() {
				dst = r.AppendTags(dst[:0])
			}
		})
	}
}
