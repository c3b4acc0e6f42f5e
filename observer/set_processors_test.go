package observer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

func steeredObserver(id, endpoint string, settings ...string) Observer {
	o := steered(settings...)
	o.UUID, o.NameLabel, o.Enabled, o.Endpoints = id, endpoint, true, []string{endpoint}
	return o
}

// processed returns the accounts of one Observer's processors, which must add
// up.
func (b *bench) processed(t *testing.T, id string) processor.Stats {
	t.Helper()
	for _, o := range b.Stats() {
		if o.UUID != id || o.Processors == nil {
			continue
		}
		s := *o.Processors
		sum := s.Passed + s.Held
		for _, n := range s.Filtered {
			sum += n
		}
		qt.Assert(t, qt.Equals(sum, s.Received))
		return s
	}
	return processor.Stats{}
}

// got returns what the endpoint of that name has, in all its exporters.
func (b *bench) got(endpoint string) (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.made {
		if m.endpoint == endpoint {
			out = append(out, m.got()...)
		}
	}
	return out
}

// TestSetProcessors: each Observer has the spans that its own settings leave,
// also when they change while trees are held.
func TestSetProcessors(t *testing.T) {
	b := newBench(fast, nil, nil)
	defer closeSet(t, b.Set)
	const uuidC = "cccccccc-0000-4000-8000-000000000003"
	all, failed := steeredObserver(uuidA, "http://all"), steeredObserver(uuidB, "http://failed", "keep.errors=true", "drop=noise*", "redact=rpc.method")
	none := steeredObserver(uuidC, "http://none", "sampler=always_off")
	b.Apply([]Observer{all, failed, none})
	send := func(tree uint64, name, err string) {
		sp := span(event.Xapi, name)
		sp.Tree, sp.Error = tree, err
		b.Export(sp)
	}
	send(1, "VM.start", "")
	send(2, "VM.stop", "")
	send(2, "noise", "")
	send(2, "child", "SR_FULL")
	send(3, "held", "")
	eventually(t, "the plain one's spans", func() bool { return len(b.got("http://all")) == 5 })
	eventually(t, "the failed tree", func() bool { return slices.Equal(b.got("http://failed"), []string{"VM.stop", "child"}) })
	s := b.processed(t, uuidB)
	qt.Check(t, qt.Equals(s.Held, 2))
	qt.Check(t, qt.Equals(s.Filtered[processor.NameDropped], 1))
	qt.Check(t, qt.Equals(b.processed(t, uuidC).Filtered[processor.SampledOut], 5))
	b.mu.Lock()
	for _, m := range b.made {
		if m.endpoint == "http://failed" {
			m.mu.Lock()
			qt.Check(t, qt.Equals(m.tags[0]["rpc.method"], "[redacted]"))
			m.mu.Unlock()
		}
	}
	b.mu.Unlock()

	// A mistake in a setting never filters: it is as if it were absent.
	failed.Attributes["dtagent.keep.errors"] = "yes"
	delete(failed.Attributes, "dtagent.drop")
	b.Apply([]Observer{all, failed, none})
	eventually(t, "what was held", func() bool {
		return slices.Equal(b.got("http://failed"), []string{"VM.stop", "child", "VM.start", "held"})
	})
	send(3, "noise", "")
	eventually(t, "what is not dropped any more", func() bool { return len(b.got("http://failed")) == 5 })
	for _, o := range b.Stats() {
		if o.UUID == uuidB {
			qt.Check(t, qt.DeepEquals(o.Warnings, []string{`attribute "dtagent.keep.errors": "yes" must be true or false; it has no effect`}))
		}
	}

	// An Observer that is disabled has nothing held in the end.
	failed.Attributes["dtagent.keep.errors"] = "true"
	b.Apply([]Observer{all, failed})
	send(4, "held", "")
	qt.Check(t, qt.Equals(b.processed(t, uuidB).Held, 1))
	failed.Enabled = false
	b.Apply([]Observer{all, failed})
	eventually(t, "the end of the subscription", func() bool { return b.processed(t, uuidB).Received == 0 })
	qt.Check(t, qt.HasLen(b.got("http://failed"), 5))
}

// TestSetProcessorsTogether: spans, settings that change, ticks and statistics
// at once. What passed is what the endpoint produced.
func TestSetProcessorsTogether(t *testing.T) {
	l := fast
	l.QueueSpans = 100_000
	b := newBench(l, nil, nil)
	settings := [][]string{{}, {"keep.errors=true"}, {"keep.slow=10us", "keep.errors=true", "hold=6s"}, {"min_duration=5us"}, {"drop=*7", "sampler=traceidratio", "sampler.arg=0.5"}}
	b.Apply([]Observer{steeredObserver(uuidA, "http://a")})
	var senders, others sync.WaitGroup
	const each = 5000
	for s := range 2 {
		senders.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(s)))
			for i := range each {
				sp := &correlate.Span{Component: event.Xapi, Tree: uint64(s)<<32 + uint64(i/10), Name: fmt.Sprint(rng.IntN(100)), Start: 1e18, End: 1e18 + rng.Int64N(11_000), Last: i%10 == 9,
					TraceID: trace.TraceID{8: byte(i / 10), 15: byte(s)}}
				if rng.IntN(50) == 0 {
					sp.Error = "E"
				}
				b.Export(sp)
				if i%50 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	stop := make(chan struct{})
	others.Go(func() {
		rng := rand.New(rand.NewPCG(2, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				b.Apply([]Observer{steeredObserver(uuidA, "http://a", settings[rng.IntN(len(settings))]...)})
				b.processed(t, uuidA)
			}
		}
	})
	senders.Wait()
	close(stop)
	others.Wait()
	b.Apply([]Observer{steeredObserver(uuidA, "http://a")}) // nothing is held any more
	s := b.processed(t, uuidA)
	qt.Check(t, qt.Equals(s.Received, 2*each))
	qt.Check(t, qt.Equals(s.Held, 0))
	t.Logf("%+v", s)
	c := closeSet(t, b.Set)
	qt.Check(t, qt.Equals(c.Produced, s.Passed))
	qt.Check(t, qt.HasLen(b.got("http://a"), int(s.Passed)))
}
