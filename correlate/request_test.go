package correlate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

const (
	vmID    = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"
	vdiID   = "01234567-89ab-4cde-8f01-23456789abcd"
	srID    = "f0e1d2c3-0000-4000-8000-00000000aaaa"
	chainID = "11111111-2222-4333-8444-555555555555"
)

func guestDisk() *event.GuestDisk {
	return &event.GuestDisk{
		Domid: 7, Devid: 51728, Device: "xvdb", VM: vmID, Name: "db", VBD: "22222222-2222-4333-8444-555555555555", VDI: vdiID, SR: srID, SRType: "nfs", Type: "vhd",
		Images: []string{"/run/sr-mount/SMB/alice@nas/" + srID + "/" + vdiID + ".vhd", "/run/sr-mount/" + srID + "/" + chainID + ".vhd"},
		Server: "nas.example:/export/vms",
	}
}

// layersOf returns layers and their total.
func layersOf(parts map[event.Layer]time.Duration) (l event.Layers) {
	for i, d := range parts {
		l[i] = int64(d)
		l[event.LayerTotal] += int64(d)
	}
	return l
}

// guestAsks is a request of a guest that has just been answered.
func (s *script) guestAsks(tgid uint32, r event.Request, d *event.GuestDisk) {
	total := event.Time(r.Layers[event.LayerTotal])
	if s.now < total {
		s.now = total
	}
	s.put(event.Event{Kind: event.KindRequest, Component: event.Tapdisk, TGID: tgid, First: s.now - total, Last: s.now, Request: r, Disk: d})
}

func TestRequest(t *testing.T) {
	s := newScript(t)
	s.wait(time.Second)
	s.guestAsks(555, event.Request{
		Layers: layersOf(map[event.Layer]time.Duration{
			event.LayerTapdisk: 200 * time.Microsecond, event.LayerCopy: 50 * time.Microsecond, event.LayerSubmit: 5 * time.Microsecond,
			event.LayerQueue: time.Millisecond, event.LayerDevice: 80 * time.Millisecond, event.LayerRunQueue: 2 * time.Millisecond, event.LayerPickup: time.Millisecond,
		}),
		Usual: 3_000_000, Offset: 1 << 33, Bytes: 45056, IOs: 2, Slow: true, Merged: true,
	}, guestDisk())
	s.wait(time.Second)
	qt.Assert(t, qt.HasLen(s.spans, 0)) // it waits for links
	s.wait(2 * time.Second)
	qt.Check(t, qt.Equals(names(s.spans), ` "queue" "device" "runq" "pickup" "guest read xvdb"`)) // tapdisk, submit and copy are below 1 %
	root := s.span("guest read xvdb")
	s.root("guest read xvdb")
	qt.Check(t, qt.IsTrue(root.Last))
	qt.Check(t, qt.Equals(root.Component, event.Tapdisk))
	qt.Check(t, qt.Equals(root.Service, "tapdisk"))
	qt.Check(t, qt.Equals(root.Kind, trace.SpanKindInternal))
	qt.Check(t, qt.Equals(root.Incomplete, ""))
	var got []string
	for _, kv := range root.Attributes {
		got = append(got, string(kv.Key)+"="+kv.Value.String())
	}
	qt.Check(t, qt.DeepEquals(got, []string{
		"disk.io.direction=read", "xs.vm.uuid=" + vmID, "xs.vm.name=db", "xs.vbd.device=xvdb", "xs.vbd.uuid=22222222-2222-4333-8444-555555555555",
		"xs.vdi.uuid=" + vdiID, "xs.sr.uuid=" + srID, "xs.sr.type=nfs", "dt.domid=7", "dt.devid=51728", "dt.image.type=vhd", "dt.image=" + vdiID + ".vhd", "dt.image.chain=2",
		"server.address=nas.example", "dt.io.export=/export/vms",
		"dt.io.runq_us=2000", "dt.io.tapdisk_us=200", "dt.io.copy_us=50", "dt.io.submit_us=5", "dt.io.queue_us=1000", "dt.io.device_us=80000", "dt.io.pickup_us=1000",
		"dt.io.usual_us=3000", "dt.io.bytes=45056", "dt.io.offset=8589934592", "dt.io.count=2", "dt.io.merged=true", "process.pid=555",
	}))
	device := s.span("device")
	qt.Check(t, qt.Equals(device.ParentID, root.SpanID))
	qt.Check(t, qt.Equals(device.Start-root.Start, 1_205_000)) // behind tapdisk, submit and queue
	qt.Check(t, qt.Equals(attr(device, "server.address"), "nas.example"))
	qt.Check(t, qt.Equals(attr(s.span("pickup"), "server.address"), ""))
	qt.Check(t, qt.DeepEquals(s.e.Stats().Requests, RequestStats{Told: 1, Spans: 1}))
}

// What the name of nobody's disk, a failed request and a sample are.
func TestRequestOfUnknownDisk(t *testing.T) {
	s := newScript(t)
	s.guestAsks(1, event.Request{Layers: layersOf(map[event.Layer]time.Duration{event.LayerCopy: time.Millisecond}), Write: true, Failed: true}, nil)
	s.guestAsks(1, event.Request{Layers: event.Layers{}}, &event.GuestDisk{Device: "xvda\x1b[2J", Devices: []string{"253:1", "253:2"}})
	s.drain()
	qt.Check(t, qt.Equals(names(s.spans), ` "copy" "guest write disk" "guest read xvda?[2J"`))
	qt.Check(t, qt.Equals(s.span("guest write disk").Error, "I/O error"))
	qt.Check(t, qt.Equals(attr(s.span("guest write disk"), "dt.io.sample"), "true"))
	qt.Check(t, qt.Equals(attr(s.span("guest read xvda?[2J"), "system.device"), "253:1 253:2"))
	qt.Check(t, qt.Equals(s.e.Stats().Requests.Unknown, 1))
}

func TestRequestsThatCannotBe(t *testing.T) {
	s := newScript(t)
	for _, l := range []event.Layers{{event.LayerTotal: 10, event.LayerCopy: 11}, {event.LayerTotal: 10, event.LayerCopy: 9}, {event.LayerCopy: -1}, {event.LayerTotal: -1}, {event.LayerCopy: 5, event.LayerDevice: -5}} {
		s.put(event.Event{Kind: event.KindRequest, TGID: 1, First: s.now, Last: s.now + 100, Request: event.Request{Layers: l}})
	}
	s.put(event.Event{Kind: event.KindRequest, TGID: 1, First: s.now, Last: s.now + 1, Request: event.Request{Layers: event.Layers{event.LayerTotal: 2, event.LayerCopy: 2}}})
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 0))
	qt.Check(t, qt.DeepEquals(s.e.Stats().Requests, RequestStats{Told: 6, Bad: 6}))
}

// Property: the spans of the layers are inside the request's, in order, do not
// overlap, and with what has none they add up to it.
func TestRequestLayersAreInside(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		s := newScript(t)
		r := event.Request{Write: random.IntN(2) == 0, Slow: true}
		for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
			if random.IntN(3) > 0 {
				r.Layers[l] = random.Int64N(1 << random.IntN(35))
				r.Layers[event.LayerTotal] += r.Layers[l]
			}
		}
		s.guestAsks(1, r, guestDisk())
		s.drain()
		root := s.spans[len(s.spans)-1]
		qt.Assert(t, qt.Equals(root.End-root.Start, r.Layers[event.LayerTotal]))
		order := readOrder[:]
		if r.Write {
			order = writeOrder[:]
		}
		least, at, place, whole := max(10_000, r.Layers[event.LayerTotal]/100), root.Start, 0, int64(0)
		for _, sp := range s.spans[:len(s.spans)-1] {
			qt.Assert(t, qt.Equals(sp.ParentID, root.SpanID))
			qt.Assert(t, qt.Equals(sp.TraceID, root.TraceID))
			qt.Assert(t, qt.IsTrue(sp.Start >= at && sp.End <= root.End))
			for order[place].String() != sp.Name {
				whole += r.Layers[order[place]]
				qt.Assert(t, qt.IsTrue(r.Layers[order[place]] < least))
				place++
			}
			qt.Assert(t, qt.Equals(sp.Start, root.Start+whole))
			qt.Assert(t, qt.Equals(sp.End-sp.Start, r.Layers[order[place]]))
			qt.Assert(t, qt.IsTrue(sp.End-sp.Start >= least))
			whole += r.Layers[order[place]]
			place, at = place+1, sp.End
		}
		for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
			want := ""
			if us := r.Layers[l] / 1000; us > 0 {
				want = strconv.FormatInt(us, 10)
			}
			qt.Assert(t, qt.Equals(attr(root, "dt.io."+l.String()+"_us"), want))
		}
	}
	var all []event.Layer
	for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
		all = append(all, l)
	}
	for _, order := range [][]event.Layer{readOrder[:], writeOrder[:]} {
		qt.Check(t, qt.DeepEquals(slices.Sorted(slices.Values(order)), all))
	}
}

func linkNames(sp *Span) string {
	var out []string
	for _, l := range sp.Links {
		out = append(out, l.Object+" "+l.Name)
	}
	return strings.Join(out, ", ")
}

func slow(d time.Duration) event.Request {
	return event.Request{Layers: layersOf(map[event.Layer]time.Duration{event.LayerDevice: d}), Slow: true}
}

func TestRequestLinks(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 5)
	s.accept("d", 6)
	s.accept("e", 7)
	// a call that has ended long before
	s.request("e", 112, "VM.clean_reboot")
	s.log(xapi, 112, "VM.clean_reboot R:07432559b306", "audit", "VM.clean_reboot: VM = '"+vmID+" (db)'")
	s.reply("e", 112, success, "")
	s.wait(50 * time.Millisecond)

	s.request("c", 110, "VM.snapshot")
	s.log(xapi, 110, "VM.snapshot R:07432559b308", "audit", "VM.snapshot: VM = '"+vmID+" (db)'; new_name = 'x'")
	s.log(xapi, 110, "VM.snapshot R:07432559b308", "audit", "VDI.snapshot: VDI = '"+vdiID+"'") // of the same tree: the call is the link
	s.request("d", 111, "SR.scan")
	s.log(xapi, 111, "SR.scan R:07432559b309", "audit", "SR.scan: SR = '"+srID+"'")
	s.rpc(1, 110, 210, "VM.stat", "VM.snapshot R:07432559b308", "null") // only looks
	s.request("e", 112, "VM.get_record")
	s.log(xapi, 112, "VM.get_record R:07432559b307", "audit", "VM.get_record: VM = '"+vmID+"'")
	s.wait(30 * time.Millisecond)
	s.guestAsks(555, slow(40*time.Millisecond), guestDisk())
	other := guestDisk()
	other.VM, other.VDI, other.SR, other.Images = srID, srID, "", nil
	s.guestAsks(556, slow(40*time.Millisecond), other)
	s.reply("c", 110, success, "")
	s.reply("d", 111, success, "")
	s.reply("e", 112, success, "")
	s.wait(20 * time.Millisecond)
	s.guestAsks(557, slow(5*time.Millisecond), guestDisk()) // all is over
	s.wait(5 * time.Second)

	var links []string
	for _, sp := range s.spans {
		if sp.Name == "guest read xvdb" {
			links = append(links, linkNames(sp))
			for _, l := range sp.Links {
				to := s.span(l.Name)
				qt.Check(t, qt.Equals(l.TraceID, to.TraceID))
				qt.Check(t, qt.Equals(l.SpanID, to.SpanID))
				qt.Check(t, qt.Not(qt.Equals(sp.TraceID, to.TraceID))) // links, never parents
			}
			qt.Check(t, qt.Equals(sp.ParentID, trace.SpanID{}))
		}
	}
	// of the second its VM is the repository's uuid
	qt.Check(t, qt.DeepEquals(links, []string{"vm VM.snapshot, sr SR.scan", "vm SR.scan", ""}))
	st := s.e.Stats()
	qt.Check(t, qt.Equals(st.Requests.Links, 3))
	qt.Check(t, qt.Equals(st.Requests.Unlinked, 0))
	s.wait(20 * time.Second)
	qt.Check(t, qt.Equals(s.e.Stats().Objects.Known, 0))
}

// A program that works at an image of the chain is a link while it runs, however long.
func TestRequestLinksToPrograms(t *testing.T) {
	s := newScript(t)
	s.accept("c", 5)
	s.request("c", 110, "SR.scan")
	s.fork(xapi, 110, 900)
	ev := event.Event{Kind: event.KindExec, Component: event.SMAPI, TGID: 900, TID: 900, Program: "vhd-util", SR: srID, VDI: chainID}
	s.put(ev)
	s.wait(time.Minute)
	s.guestAsks(555, slow(time.Millisecond), guestDisk())
	s.wait(3 * time.Second)
	qt.Check(t, qt.Equals(linkNames(s.span("guest read xvdb")), "chain vhd-util"))
}

// However much works at an object, and however many objects there are, no more than
// so much is kept of it.
func TestObjectsAreBounded(t *testing.T) {
	s := limitedScript(t, Limits{Keys: 64})
	for i := range 200 {
		conn, tid := fmt.Sprint("c", i), uint32(1000+i)
		s.accept(conn, int32(10+i))
		s.request(conn, tid, "VM.clone")
		s.log(xapi, tid, fmt.Sprintf("VM.clone R:0743255%05d", i), "audit", fmt.Sprintf("VM.clone: VM = '%s'; SR = '%08x-0000-4000-8000-00000000aaaa'", vmID, i))
	}
	st := s.e.Stats().Objects
	qt.Check(t, qt.Equals(st.Known, 64))
	qt.Check(t, qt.Equals(st.Noted, 400))
	qt.Check(t, qt.Equals(st.Dropped, 200-worksPerObject))
	qt.Check(t, qt.Equals(st.Evicted, 201-64))
	s.guestAsks(555, slow(time.Millisecond), guestDisk())
	s.wait(3 * time.Second)
	qt.Check(t, qt.HasLen(s.span("guest read xvdb").Links, worksPerObject))
	s.drain()
}

func TestRequestsAreLimited(t *testing.T) {
	s := newScript(t)
	told := func(tgid uint32, n int, slow bool) uint64 {
		before := s.e.Stats().Requests
		for range n {
			s.guestAsks(tgid, event.Request{Layers: layersOf(map[event.Layer]time.Duration{event.LayerDevice: time.Microsecond}), Slow: slow}, guestDisk())
		}
		after := s.e.Stats().Requests
		qt.Assert(t, qt.Equals(after.Told, after.Spans+after.Limited+after.Bad+uint64(after.Held)))
		return uint64(n) - (after.Limited - before.Limited)
	}
	qt.Check(t, qt.Equals(told(1, 100, false), 10)) // samples leave half
	qt.Check(t, qt.Equals(told(1, 100, true), 10))
	qt.Check(t, qt.Equals(told(2, 100, true), 20)) // another disk has its own
	s.wait(500 * time.Millisecond)
	qt.Check(t, qt.Equals(told(1, 100, true), 10))
	s.wait(10 * time.Second)
	qt.Check(t, qt.Equals(told(1, 100, true), 20)) // and no more after a rest
	s.wait(10 * time.Second)
	all := uint64(0)
	for disk := range uint32(100) {
		all += told(1000+disk, 20, true)
	}
	qt.Check(t, qt.Equals(all, 203)) // in all, and what came free in 20 ms
	s.drain()
	st := s.e.Stats().Requests
	qt.Check(t, qt.Equals(st.Told, st.Spans+st.Limited))
	qt.Check(t, qt.Equals(st.Held, 0))
	n := 0
	for _, sp := range s.spans {
		if sp.Last {
			n++
		}
	}
	qt.Check(t, qt.Equals(uint64(n), st.Spans))
}

// Without limits the requests that wait are bounded all the same, and none is lost.
func TestHeldRequestsAreBounded(t *testing.T) {
	s := limitedScript(t, Limits{DiskRequests: 1e9, Requests: 1e9})
	for range 3 * requestsHeld {
		s.e.Handle(&event.Event{Kind: event.KindRequest, TGID: 1, Time: s.now, Request: event.Request{Slow: true}})
	}
	st := s.e.Stats().Requests
	qt.Check(t, qt.DeepEquals(st, RequestStats{Told: 3 * requestsHeld, Spans: 2 * requestsHeld, Early: 2 * requestsHeld, Unknown: 2 * requestsHeld, Held: requestsHeld}))
	s.drain()
	qt.Check(t, qt.HasLen(s.spans, 3*requestsHeld))
}

func TestParseUUID(t *testing.T) {
	id, ok := parseUUID(vmID)
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(fmt.Sprintf("%x", id), strings.ReplaceAll(vmID, "-", "")))
	upper, ok := parseUUID([]byte(strings.ToUpper(vmID)))
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(upper, id))
	for _, s := range []string{"", vmID[1:], vmID + "0", strings.ReplaceAll(vmID, "-", "0"), "g" + vmID[1:], strings.Repeat("-", 36)} {
		_, ok := parseUUID(s)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf("%q", s))
	}
}

func TestLooks(t *testing.T) {
	for name, look := range map[string]bool{
		"VM.get_record": true, "send org.xen.xapi.xenops.classic VM.stat": true, "VM_check_state": true, "VM.update_allowed_operations": true, "SR.stat": true,
		"VM.start": false, "VM_start": false, "VDI.snapshot": false, "SR.scan": false, "VBD_plug": false, "vhd-util": false, "LVMSR sr_scan": false,
		"send org.xen.xapi.storage VDI.attach3": false, "Atomic (VM_unpause)": false, "": false,
	} {
		qt.Check(t, qt.Equals(isLook(name), look), qt.Commentf("%s", name))
	}
}

// BenchmarkRequest is a slow request with six layers, and two links.
func BenchmarkRequest(b *testing.B) {
	s := limitedScript(b, Limits{DiskRequests: 1e9, Requests: 1e9})
	e, spans := s.e, 0
	e.cfg.Emit = func(*Span) { spans++ }
	for i, id := range []string{vmID, srID} {
		conn := fmt.Sprint("c", i)
		s.accept(conn, int32(10+i))
		s.request(conn, uint32(110+i), "VM.snapshot")
		s.log(xapi, uint32(110+i), fmt.Sprintf("VM.snapshot R:07432559b30%d", i), "audit", "VM.snapshot: VM = '"+id+"'")
	}
	s.wait(3 * time.Second)
	r := slow(50 * time.Millisecond)
	for l := event.LayerTapdisk; l < event.LayerDevice; l++ {
		r.Layers[l] += 1e6
		r.Layers[event.LayerTotal] += 1e6
	}
	ev := event.Event{Kind: event.KindRequest, Component: event.Tapdisk, TGID: 555, Request: r, Disk: guestDisk()}
	before := spans
	b.ReportAllocs()
	for b.Loop() {
		s.now += 1e6
		ev.Time, ev.First, ev.Last = s.now, s.now-event.Time(r.Layers[event.LayerTotal]), s.now
		e.Handle(&ev)
		e.Advance(s.now)
	}
	b.ReportMetric(float64(spans-before)/float64(b.N), "spans/op")
}
