package correlate

import (
	"encoding/binary"
	"path"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// A guest's request to its disk that was slow, or is a sample, is a trace of its own:
// a span, and one below it for each layer that took its part. A layer is a sum of
// times; they stand in the order in which a request comes through them, as if it came
// through each once:
//
//	write  copy, tapdisk, metadata, submit, queue, device, runq, pickup
//	read   tapdisk, metadata, submit, queue, device, runq, pickup, copy
//
// Requests wait for Config.Hold, so that the operations to which there are links have
// their trace ids by then. One disk, and all together, give so many a second; further
// ones are counted.

const (
	requestsHeld = 2048   // that wait; the oldest leaves early
	requestRates = 1024   // disks whose rate is known
	maxLinks     = 8      // of one request
	maxChain     = 32     // images of one disk that are looked at for links
	layerLeast   = 10_000 // ns: a layer that took less is an attribute only,
	layerLeastOf = 100    // and so is one that took less than one part in so many
)

var (
	writeOrder = [...]event.Layer{event.LayerCopy, event.LayerTapdisk, event.LayerMetadata, event.LayerSubmit, event.LayerQueue, event.LayerDevice, event.LayerRunQueue, event.LayerPickup}
	readOrder  = [...]event.Layer{event.LayerTapdisk, event.LayerMetadata, event.LayerSubmit, event.LayerQueue, event.LayerDevice, event.LayerRunQueue, event.LayerPickup, event.LayerCopy}
)

// layerKeys are the names of the attributes of layers.
var layerKeys = func() (keys [event.NumLayers]attribute.Key) {
	for l := range event.NumLayers {
		keys[l] = attribute.Key("dt.io." + l.String() + "_us")
	}
	return keys
}()

// RequestStats say what became of the guests' requests that were told. Each is one of
// spans, limited, bad and held.
type RequestStats struct {
	Told     uint64 `json:"told"`
	Spans    uint64 `json:"spans"`    // that became a span, with those of its layers
	Limited  uint64 `json:"limited"`  // too many of one disk, or in all
	Bad      uint64 `json:"bad"`      // that cannot be
	Early    uint64 `json:"early"`    // of spans: left before links to it were surely known, for want of room
	Unknown  uint64 `json:"unknown"`  // of spans: nobody knew whose disk it is
	Links    uint64 `json:"links"`    // to operations
	Unlinked uint64 `json:"unlinked"` // links that are missing: too many of one request, or the operation had no trace id yet
	Held     int    `json:"held"`     // now
}

// heldRequest is a request that waits.
type heldRequest struct {
	request     event.Request
	disk        *event.GuestDisk
	tgid        uint32
	first, last event.Time
	start       int64 // first, by the wall clock
	due         event.Time
	prev, next  *heldRequest
}

func (h *heldRequest) links() (prev, next **heldRequest) { return &h.prev, &h.next }

// rate lets so many through a second, and as many at once after a rest.
type rate struct{ next event.Time }

const second = event.Time(1_000_000_000)

// take tells whether another may pass at now, of perSecond, and leave so many parts in
// two of a second's.
func (r *rate) take(now event.Time, perSecond int, leave event.Time) bool {
	from := max(r.next, now)
	if from-now > second-leave*second/2-second/event.Time(perSecond) {
		return false
	}
	r.next = from + second/event.Time(perSecond)
	return true
}

type requestTable struct {
	held  list[heldRequest, *heldRequest] // oldest first
	free  *heldRequest
	all   rate
	rates table[uint32, rate] // by tapdisk
	none  uint64
	attrs []attribute.KeyValue // scratch
	links []SpanLink           // scratch
}

func (t *requestTable) init(*Engine) { t.rates.init(requestRates, &t.none, func(*rate) {}) }

// handleRequest takes a request that was told.
func (e *Engine) handleRequest(ev *event.Event) {
	s, t := &e.stats.Requests, &e.requests
	s.Told++
	r := &ev.Request
	if !r.Layers.Whole() || ev.First < 0 || ev.Last-ev.First < event.Time(r.Layers[event.LayerTotal]) {
		s.Bad++
		return
	}
	leave := event.Time(0)
	if !r.Slow {
		leave = 1 // half
	}
	own := t.rates.get(ev.TGID)
	if own == nil {
		own = t.rates.put(ev.TGID, e.now)
	}
	before := *own
	if !own.take(e.now, e.limits.DiskRequests, leave) {
		s.Limited++
		return
	}
	if !t.all.take(e.now, e.limits.Requests, leave) {
		*own = before
		s.Limited++
		return
	}
	if t.held.len == requestsHeld {
		s.Early++
		e.tellRequest(t.held.head)
	}
	h := t.free
	if h == nil {
		h = new(heldRequest)
	} else {
		t.free, h.next = h.next, nil
	}
	h.request, h.disk, h.tgid, h.first, h.last = *r, ev.Disk, ev.TGID, ev.First, ev.Last
	h.start, h.due = e.cfg.Wall(ev.First), e.now+e.hold
	t.held.add(h)
}

// tellRequests emits the requests that have waited for long enough.
func (e *Engine) tellRequests(now event.Time) {
	t := &e.requests
	for h := t.held.head; h != nil && h.due <= now; h = t.held.head {
		e.tellRequest(h)
	}
	t.rates.expire(e.now - 2*second)
}

// noDisk stands for one that nobody knew.
var noDisk event.GuestDisk

// tellRequest emits the spans of h, the layers' before that of the request.
func (e *Engine) tellRequest(h *heldRequest) {
	t, r, d := &e.requests, &h.request, h.disk
	t.held.del(h)
	if d == nil {
		d = &noDisk
		e.stats.Requests.Unknown++
	}
	name, direction, order := "guest read ", "read", readOrder[:]
	if r.Write {
		name, direction, order = "guest write ", "write", writeOrder[:]
	}
	e.scratch = append(append(e.scratch[:0], name...), deviceName(d)...)
	name = e.strings.String(e.clean(e.scratch, maxName))

	e.trees.made++
	root := Span{
		TraceID: e.newTraceID(), SpanID: e.newSpanID(), Tree: e.trees.made, Last: true,
		Component: event.Tapdisk, Service: serviceOf(event.Tapdisk), Name: name, Kind: trace.SpanKindInternal,
		Start: h.start, End: h.start + int64(h.last-h.first), Link: LinkNone,
		Guest: &GuestRequest{Took: r.Layers[event.LayerTotal], Usual: r.Usual, Slow: r.Slow},
	}
	if r.Failed {
		root.Error = "I/O error"
	}
	root.Links = e.requestLinks(h, d)
	attrs := t.attrs[:0]
	add := func(kv attribute.KeyValue) { attrs = append(attrs, kv) }
	text := func(key attribute.Key, v string) {
		if v != "" {
			add(key.String(e.text([]byte(v), maxValue)))
		}
	}
	where := func() {
		text("system.device", strings.Join(d.Devices, " "))
		host, export := serverOf(d.Server)
		text("server.address", host)
		text("dt.io.export", export)
	}
	add(attribute.String("disk.io.direction", direction))
	text("xs.vm.uuid", d.VM)
	text("xs.vm.name", d.Name)
	text("xs.vbd.device", d.Device)
	text("xs.vbd.uuid", d.VBD)
	text("xs.vdi.uuid", d.VDI)
	text("xs.sr.uuid", d.SR)
	text("xs.sr.type", d.SRType)
	if h.disk != nil {
		add(attribute.Int64("dt.domid", int64(d.Domid)))
		add(attribute.Int64("dt.devid", int64(d.Devid)))
	}
	text("dt.image.type", d.Type)
	if len(d.Images) > 0 {
		text("dt.image", path.Base(d.Images[0])) // what is before it may name a user
		add(attribute.Int64("dt.image.chain", int64(len(d.Images))))
	}
	where()
	for l := event.LayerTotal + 1; l < event.NumLayers; l++ {
		if us := r.Layers[l] / 1000; us > 0 {
			add(attribute.KeyValue{Key: layerKeys[l], Value: attribute.Int64Value(us)})
		}
	}
	if r.Usual > 0 {
		add(attribute.Int64("dt.io.usual_us", r.Usual/1000))
	}
	add(attribute.Int64("dt.io.bytes", int64(r.Bytes)))
	add(attribute.Int64("dt.io.offset", int64(r.Offset)))
	add(attribute.Int64("dt.io.count", int64(r.IOs)))
	for _, is := range [...]struct {
		key attribute.Key
		so  bool
	}{{"dt.io.sample", !r.Slow}, {"dt.io.merged", r.Merged}, {"dt.io.unsplit", r.Unsplit}} {
		if is.so {
			add(is.key.Bool(true))
		}
	}
	add(attribute.Int64("process.pid", int64(h.tgid)))
	root.Attributes = e.arena.attributes(len(attrs))
	copy(root.Attributes, attrs)

	least := max(layerLeast, r.Layers[event.LayerTotal]/layerLeastOf)
	at := root.Start
	for _, l := range order {
		ns := r.Layers[l]
		start := at
		at += ns
		if ns < least {
			continue
		}
		attrs = attrs[:0]
		add(attribute.String("disk.io.direction", direction))
		if l == event.LayerDevice || l == event.LayerQueue {
			where()
		}
		s := e.arena.span()
		*s = Span{
			TraceID: root.TraceID, SpanID: e.newSpanID(), ParentID: root.SpanID, Tree: root.Tree,
			Component: root.Component, Service: root.Service, Name: l.String(), Kind: trace.SpanKindInternal,
			Start: start, End: at, Link: LinkThread, Guest: root.Guest,
		}
		s.Attributes = e.arena.attributes(len(attrs))
		copy(s.Attributes, attrs)
		e.tell(s)
	}
	clear(attrs[:cap(attrs)])
	t.attrs = attrs[:0]
	s := e.arena.span()
	*s = root
	e.stats.Requests.Spans++
	e.tell(s)
	*h = heldRequest{next: t.free}
	t.free = h
}

// tell emits a span that was no activity.
func (e *Engine) tell(s *Span) {
	e.stats.Spans++
	e.activities.byLink[linkIndex(s.Link)]++
	e.cfg.Emit(s)
}

// serverOf splits the source of a network file system: host:/path, or //host/path of
// SMB, in which a user may stand before the host.
func serverOf(source string) (host, export string) {
	host, export, _ = strings.Cut(source, ":/")
	if share, ok := strings.CutPrefix(source, "//"); ok {
		host, export, _ = strings.Cut(share, "/")
		host = host[strings.LastIndexByte(host, '@')+1:]
	}
	if export != "" {
		export = "/" + export
	}
	return host, export
}

// deviceName is what a guest calls the disk, as far as it is known.
func deviceName(d *event.GuestDisk) string {
	if d.Device == "" {
		return "disk"
	}
	return d.Device
}

// requestLinks are to the operations that worked at the request's VM, disk,
// repository, or another image of the disk's chain, while it lasted.
func (e *Engine) requestLinks(h *heldRequest, d *event.GuestDisk) []SpanLink {
	t := &e.requests
	if e.objects.len() == 0 {
		return nil
	}
	links := t.links[:0]
	look := func(id, as string) {
		if u, ok := parseUUID(id); ok {
			links = e.linksTo(links, u, as, h.first, h.last)
		}
	}
	look(d.VM, "vm")
	look(d.VDI, "vdi")
	for _, image := range d.Images[:min(len(d.Images), maxChain)] {
		if u := event.ImageUUID(path.Base(image)); u != d.VDI {
			look(u, "chain")
		}
	}
	look(d.SR, "sr")
	t.links = links[:0]
	e.stats.Requests.Links += uint64(len(links))
	if len(links) == 0 {
		return nil
	}
	return append([]SpanLink(nil), links...)
}

func (e *Engine) newTraceID() (id trace.TraceID) {
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:8], e.cfg.Rand())
		binary.BigEndian.PutUint64(id[8:], e.cfg.Rand())
	}
	return id
}

func (e *Engine) newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:], e.cfg.Rand())
	}
	return id
}
