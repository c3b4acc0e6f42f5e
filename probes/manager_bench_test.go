//go:build linux

package probes

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/redact"
	"github.com/xenserver/dtagent/probes/target"
)

// BenchmarkCall is what an API call costs its two processes with the probes
// off and on, and with the threads' time told, too: a header of 250 bytes read in some 60 calls, a body, two writes
// and a log line.
func BenchmarkCall(b *testing.B) {
	for _, mode := range []string{"off", "legacy", "legacy-waits", "modern", "modern-waits"} {
		b.Run(mode, func(b *testing.B) {
			v := startVictim(b, "xapi")
			var events atomic.Int64
			var m *Manager
			if mode != "off" {
				k, err := bpf.Open(bpf.Options{Legacy: strings.HasPrefix(mode, "legacy")})
				if err != nil {
					b.Skip("needs eBPF: " + err.Error())
				}
				m, err = Open(k, Options{Proc: victimsProc(b)})
				qt.Assert(b, qt.IsNil(err))
				ctx, cancel := context.WithCancel(context.Background())
				var wg sync.WaitGroup
				wg.Go(func() { _ = m.Run(ctx, func(*event.Event) { events.Add(1) }) })
				defer wg.Wait()
				defer cancel()
				qt.Assert(b, qt.IsNil(m.SetWaits(strings.HasSuffix(mode, "-waits"), 0)))
				qt.Assert(b, qt.IsNil(m.Want(event.Of(event.Xapi))))
			}
			c := v.dial()
			c.call("VM.get_all", session)
			start := events.Load()
			b.ResetTimer()
			for range b.N {
				c.call("VM.get_all", session)
			}
			b.StopTimer()
			time.Sleep(100 * time.Millisecond)
			b.ReportMetric(float64(events.Load()-start)/float64(b.N), "events/op")
			if m != nil {
				b.ReportMetric(float64(m.Stats().Lost), "lost")
			}
		})
	}
}

// call is the records of one API call.
func call(t testing.TB) []bpf.Record {
	body := "<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.get_record</methodName>\n<params>\n<param>\n<value><string>" + session + "</string></value>\n</param>\n</params>\n</methodCall>\n"
	head := fmt.Sprintf("POST / HTTP/1.1\r\nhost: localhost\r\ntraceparent: 00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00\r\ncookie: session_id=%s\r\ncontent-length: %d\r\n\r\n", session, len(body))
	reply := strings.Repeat(`<member><name>memory_target</name><value>4294967296</value></member>`, 40)
	data := func(dir uint8, flags uint16, text string) bpf.Record {
		return bpf.Record{Raw: record(t, bpf.DataRec{Hdr: hdr(bpf.KindData, flags), Born: 5, Bytes: uint64(len(text)), FD: 18, Calls: 1, HeadLen: uint16(len(text)), Dir: dir}, text)}
	}
	line := "<175>Nov 22 12:23:14 xapi: [debug||60 /var/lib/xcp/xapi|VM.get_record R:7fab96eb5fb1|api_readonly] VM.get_record"
	return []bpf.Record{
		data(bpf.DirIn, 0, head), data(bpf.DirIn, bpf.FlagMore, body),
		{Raw: record(t, bpf.LogRec{Hdr: hdr(bpf.KindLog, 0), Bytes: uint32(len(line)), HeadLen: uint16(len(line))}, line)},
		data(bpf.DirOut, 0, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n", len(reply))), data(bpf.DirOut, bpf.FlagMore, reply),
	}
}

// pipe returns what Run does with records, without the kernel.
func pipe(t testing.TB) (handle func(), events *int) {
	c, err := clock.New(nil)
	qt.Assert(t, qt.IsNil(err))
	m := &Manager{clock: c, watcher: target.NewWatcher(target.Options{})}
	m.reader.redactor = redact.New(0)
	originals := call(t)
	recs := call(t)
	events = new(int)
	var ev event.Event
	sink := func(*event.Event) { *events++ }
	return func() {
		for i := range recs {
			copy(recs[i].Raw, originals[i].Raw) // redaction was in place
			m.record(&recs[i], &ev, sink)
		}
	}, events
}

// BenchmarkRecords is what the records of one API call cost the agent until
// they are events: decoded, redacted, counted.
func BenchmarkRecords(b *testing.B) {
	handle, _ := pipe(b)
	b.ReportAllocs()
	for b.Loop() {
		handle()
	}
	b.ReportMetric(5*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func TestRecordAllocations(t *testing.T) {
	handle, events := pipe(t)
	handle()
	if n := testing.AllocsPerRun(100, handle); n != 0 {
		t.Errorf("%v allocations for the records of a call", n)
	}
	qt.Check(t, qt.Equals(*events, 102*5))
}
