package verdict

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// blame says why a disk is slower than its load explains.
func (j *judge) blame(g *judged) verdict {
	d, s := g.d, &g.share
	thread := s[event.LayerTapdisk] + s[event.LayerPickup] + s[event.LayerCopy]
	if v, ok := j.paused(g, thread+s[event.LayerMetadata]); ok {
		return v
	}
	if v, ok := j.limited(g); ok {
		return v
	}
	top := g.top()[0].layer
	if s[event.LayerSubmit] >= 0.25 && (top == event.LayerPickup || top == event.LayerTapdisk) && !threadBusy(d) && !j.stolen() {
		top = event.LayerSubmit // while it is blocked it does not see what else is done
	}
	if s[event.LayerCopy] >= 0.2 && (top == event.LayerPickup || top == event.LayerTapdisk) && !threadBusy(d) && !j.stolen() {
		top = event.LayerCopy // as much: it copies for one while the others wait
	}
	if top == event.LayerMetadata && j.tablesSlow(g) {
		top = event.LayerDevice
	}
	v := verdict{place: top.String(), share: s[top]}
	if g.added[event.LayerTotal] <= 0 {
		v.cause, v.place = Unknown, ""
		v.add("the layers do not say where the time went")
		return v
	}
	storage := s[event.LayerDevice] + s[event.LayerQueue]
	switch top {
	case event.LayerDevice:
		v.share = storage
		if j.tablesSlow(g) {
			v.share += s[event.LayerMetadata]
			v.add("the image's own I/O is as slow: %s each", Span(d.Own.Mean()))
		}
		j.storage(g, &v)
	case event.LayerQueue:
		if g.d.QoS == "" && j.storageElse(g, &v) {
			v.share = storage
			break
		}
		v.cause = QueueLimit
		if sr, _ := j.sr(d); sr != nil && sr.NFS != nil && sr.NFS.Ops > 0 {
			v.add("RPCs to %s waited %s each until they were sent", sr.NFS.Server, Span(sr.NFS.Backlog/time.Duration(sr.NFS.Ops)))
		}
		v.add("the device takes as long as ever with what it has")
	case event.LayerRunQueue:
		j.cpu(g, &v)
	case event.LayerSubmit:
		v.cause = SubmitBlocking
		v.share = s[event.LayerSubmit] + s[event.LayerPickup] + s[event.LayerTapdisk]
		if d.SRType == "ext" && d.Type == "vhd" {
			v.confirmed = 1
			v.add("the SR is ext and the image a vhd: writes that make the file grow wait in io_submit")
		}
		if p := d.Process; p != nil {
			v.add("its tapdisk ran for %.0f %% of the time", 100*p.CPU)
		}
	case event.LayerMetadata:
		j.chain(g, &v)
	case event.LayerTapdisk, event.LayerPickup, event.LayerCopy:
		v.share = thread
		switch {
		case j.stolen():
			v.share += s[event.LayerRunQueue]
			j.cpu(g, &v)
		case threadBusy(d):
			j.thread(g, &v)
		case top == event.LayerCopy:
			v.cause = Copy
			if p := d.Process; p != nil {
				v.add("its tapdisk ran for %.0f %% of the time", 100*p.CPU)
			}
		default:
			v.cause = Tapdisk
			if p := d.Process; p != nil {
				say := fmt.Sprintf("its tapdisk ran for %.0f %% of the time and was not told to pause", 100*p.CPU)
				if p.Polling {
					say += "; it polls its ring, so that its CPU says nothing"
				}
				v.add("%s", say)
			}
		}
	}
	if v.share < 0.4 && top != event.LayerRunQueue {
		v.add("the time is spread over layers; the most is %s", layerWords[top])
		v.cause = Unknown
	}
	return v
}

func threadBusy(d *Disk) bool {
	return d.Process != nil && d.Process.CPU >= busyThread && !d.Process.Polling
}

func (j *judge) stolen() bool { return j.w.Host != nil && j.w.Host.Steal >= stealMuch }

// paused looks for a tapdisk that was told to stop for a while.
func (j *judge) paused(g *judged, held float64) (verdict, bool) {
	d := g.d
	v := verdict{cause: Pause, place: g.top()[0].layer.String(), share: held}
	var why string
	for i := range j.w.Operations {
		o := &j.w.Operations[i]
		if pauses(o.Kind) && j.concerns(o, d) != "" && j.concerns(o, d) != "the SR" {
			why = o.Kind
		}
	}
	switch p := d.Process; {
	case held < 0.5:
		return v, false
	case p != nil && p.Paused >= pauseShort:
		v.add("its tapdisk was paused for %s", Span(p.Paused))
		if why != "" {
			v.confirmed = 1
		}
		return v, true
	case p == nil && why != "" && g.main.tail:
		v.add("a %s ran, which pauses a disk; the pause itself was not seen", why)
		return v, true
	}
	return v, false
}

func pauses(kind string) bool {
	return slices.ContainsFunc([]string{"snapshot", "coalesce", "resize", "checkpoint", "clone"}, func(s string) bool { return strings.Contains(kind, s) })
}

// limited looks for limits that are reached: of configuration, of places.
func (j *judge) limited(g *judged) (verdict, bool) {
	d, s := g.d, &g.share
	if waits := s[event.LayerQueue] + s[event.LayerSubmit] + s[event.LayerMetadata]; d.QoS != "" && waits >= 0.5 {
		v := verdict{cause: QoS, place: largest(g, event.LayerQueue, event.LayerSubmit, event.LayerMetadata), share: waits, confirmed: 1}
		v.add("a limit is set: %s", d.QoS)
		v.add("%.0f requests and %.1f MB a second were served", g.rate, g.bytes/1e6)
		return v, true
	}
	if waits := s[event.LayerMetadata] + s[event.LayerTapdisk]; waits >= 0.5 && !threadBusy(d) && !j.stolen() && full(d) {
		v := verdict{cause: QueueLimit, place: largest(g, event.LayerMetadata, event.LayerTapdisk), share: waits, confirmed: 1}
		fullWords(d, &v)
		return v, true
	}
	return verdict{}, false
}

func full(d *Disk) bool {
	return d.Process != nil && d.Process.NoSlots >= fullOften || d.Ring != nil && d.Ring.Samples > 0 && d.Ring.Full >= fullOften
}

func fullWords(d *Disk, v *verdict) {
	if d.Process != nil && d.Process.NoSlots >= fullOften {
		v.add("tapdisk had no free place in %.0f %% of the samples", 100*d.Process.NoSlots)
	}
	if d.Ring != nil && d.Ring.Full >= fullOften {
		v.add("the ring of %d requests was full in %.0f %% of the samples", d.Ring.Size, 100*d.Ring.Full)
	}
}

func largest(g *judged, layers ...event.Layer) string {
	return slices.MaxFunc(layers, func(a, b event.Layer) int { return cmp.Compare(g.share[a], g.share[b]) }).String()
}

// tablesSlow tells whether the image's own I/O takes longer as the guest's does at the device.
func (j *judge) tablesSlow(g *judged) bool {
	d, m := g.d, g.main
	base := j.b.disks[d.ID]
	if d.Own == nil || d.Own.Count == 0 || base == nil || len(base.Around.Kept) < needWindows || m.usual.mean[event.LayerDevice] <= 0 {
		return false
	}
	own := 1e3 * median(base.Around.Kept, func(a *around) float64 { return float64(a.Own) })
	device := m.mean[event.LayerDevice] / m.usual.mean[event.LayerDevice]
	return own > 0 && device >= 2 && m.mean[event.LayerDevice]-m.usual.mean[event.LayerDevice] >= floorOwn && float64(d.Own.Mean()) >= 2*own
}

// thread is for a tapdisk that needs all of a CPU.
func (j *judge) thread(g *judged, v *verdict) {
	d := g.d
	v.cause, v.confirmed = TapdiskCPU, 1
	v.add("its tapdisk ran for %.0f %% of the time: a thread cannot do more", 100*d.Process.CPU)
	if m := g.main; m.n > 0 && d.Requests[m.op].Bytes > 0 {
		v.add("%.0f requests a second, of %s on average", g.rate, size(float64(d.Requests[m.op].Bytes)/float64(m.n)))
	}
}

func size(bytes float64) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%.1f KiB", bytes/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
}

// cpu is for a tapdisk that does not get one.
func (j *judge) cpu(g *judged, v *verdict) {
	v.cause = Dom0CPU
	if p := g.d.Process; p != nil {
		v.add("its tapdisk waited for a CPU for %.0f %% of the time, and ran for %.0f %%", 100*p.RunQueue, 100*p.CPU)
	}
	h := j.w.Host
	switch {
	case h == nil:
	case h.Steal >= stealMuch:
		v.cause, v.confirmed = Steal, 1
		v.add("Xen ran others for %.0f %% of the time of dom0's %d CPUs", 100*h.Steal, h.CPUs)
	case h.Idle <= idleLittle:
		v.confirmed = 1
		v.add("dom0's %d CPUs were idle for %.0f %% of the time", h.CPUs, 100*h.Idle)
	default:
		v.add("dom0's %d CPUs were idle for %.0f %% of the time in all", h.CPUs, 100*h.Idle)
	}
	n, of := 0, 0
	for _, o := range j.disks {
		if o != g && o.rate > 0 {
			of++
			if o.slow() && o.share[event.LayerRunQueue] >= 0.3 {
				n++
			}
		}
	}
	if of > 0 {
		v.add("%d of %d other disks wait for it as well", n, of)
	}
}

// chain is for a tapdisk that waits for the image's tables, or for places.
func (j *judge) chain(g *judged, v *verdict) {
	d := g.d
	v.cause = DeepChain
	if o := d.Own; o != nil && o.Count > 0 {
		requests := float64(g.requests())
		v.add("%d I/O of the image's own (tables), %.2f for each of the guest's, %s each", o.Count, float64(o.Count)/requests, Span(o.Mean()))
		if float64(o.Count) >= ownPerRequest*requests {
			v.confirmed = 1
		}
	}
	if len(d.Chain) > 1 {
		var below, all uint64
		for i, c := range d.Chain {
			n := c.Hits[Read] + c.Hits[Write]
			all += n
			if i >= hitsDeep {
				below += n
			}
		}
		if all > 0 {
			v.add("the chain has %d images; %.0f %% of the requests were served %d or more below the leaf", len(d.Chain), 100*float64(below)/float64(all), hitsDeep)
		} else {
			v.add("the chain has %d images", len(d.Chain))
		}
		if len(d.Chain) >= chainDeep || below*2 >= max(all, 1) {
			v.confirmed = 1
		}
	}
	if v.confirmed == 0 {
		v.confirmed = -1
		v.add("nothing else says that it is the image's tables: it may be places in tapdisk, too")
	}
}

func (g *judged) requests() (n uint64) {
	for _, m := range g.ops {
		if m != nil {
			n += m.n
		}
	}
	return max(n, 1)
}

// storage is for time at the device or the server.
func (j *judge) storage(g *judged, v *verdict) {
	if j.storageElse(g, v) {
		return
	}
	d := g.d
	sr, base := j.sr(d)
	v.cause = Device
	if sr != nil && sr.NFS != nil && sr.NFS.Ops > 0 {
		j.nfs(sr, base, v)
	} else if len(d.Devices) > 0 {
		v.add("the device is %s", strings.Join(d.Devices, ", "))
	}
	j.others(g, v)
}

// others says how many other disks of the SR are slow at the storage.
func (j *judge) others(g *judged, v *verdict) {
	n, of := 0, 0
	for _, o := range j.disks {
		if o == g || g.d.SR == "" || o.d.SR != g.d.SR || o.rate == 0 {
			continue
		}
		of++
		if o.slow() && o.share[event.LayerDevice]+o.share[event.LayerQueue] >= 0.5 {
			n++
		}
	}
	switch {
	case of == 0:
		v.add("no other disk of the SR had requests: it is not seen whether the whole SR is slow")
	case n > 0:
		v.confirmed = max(v.confirmed, 1)
		v.add("%d of %d other disks of the SR are slow there as well", n, of)
	default:
		v.add("none of %d other disks of the SR is slow there: look at what is this disk's alone (its LUN, file, part of the device)", of)
	}
}

// nfs tells the server from the network to it.
func (j *judge) nfs(sr *SR, base *srBase, v *verdict) {
	n := sr.NFS
	rtt := n.RTT / time.Duration(n.Ops)
	say := fmt.Sprintf("RPCs to %s are answered after %s", n.Server, Span(rtt))
	slower := false
	if base != nil && len(base.Seen.Kept) >= needWindows {
		usual := 1e3 * median(base.Seen.Kept, func(s *srSeen) float64 { return float64(s.RTT) })
		say += fmt.Sprintf(" (usual %s)", span(usual))
		slower = usual > 0 && float64(rtt) >= rttRatio*usual
	}
	v.add("%s", say)
	if n.Retrans > 0 || n.Timeouts > 0 {
		v.add("%d RPCs were sent again, %d timed out", n.Retrans, n.Timeouts)
	}
	if sr.TCP == nil {
		v.add("there are no figures of the TCP connection: whether it is the server or the network is not known")
		return
	}
	v.cause = Server
	if slower {
		v.confirmed = 1
	}
	v.add("TCP to %s is fine: round trip %s, %.2f %% sent again", sr.TCP.Peer, Span(sr.TCP.RTT), 100*retransPart(sr.TCP))
}

// network tells whether the way to the storage is worse than usual.
func (j *judge) network(g *judged, v *verdict) bool {
	sr, base := j.sr(g.d)
	if sr == nil || sr.TCP == nil {
		return false
	}
	t := sr.TCP
	lossy := t.Retrans >= retransLeast && retransPart(t) >= retransMuch
	far := false
	if base != nil && len(base.Seen.Kept) >= needWindows {
		usual := time.Duration(1e3 * median(base.Seen.Kept, func(s *srSeen) float64 { return float64(s.TCP) }))
		lossy = lossy && retransPart(t) >= 3*quantile(base.Seen.Kept, 0.9, func(s *srSeen) float64 { return float64(s.Retrans) })
		// It must be a good part of what was added, or it is a hint at most.
		added := g.added[event.LayerTotal] / float64(g.requests())
		far = usual > 0 && t.RTT >= time.Duration(tcpRatio*float64(usual)) && t.RTT-usual >= tcpFloor && float64(t.RTT-usual) >= 0.2*added
		if far {
			v.add("TCP to %s: round trip %s, usual %s", t.Peer, Span(t.RTT), Span(usual))
		}
	} else if t.RTT >= tcpAlone && float64(t.RTT) >= 0.5*g.main.mean[event.LayerDevice] {
		far = true
		v.add("TCP to %s: round trip %s, which is most of the time", t.Peer, Span(t.RTT))
	}
	if lossy {
		v.add("TCP to %s: %d of %d segments were sent again (%.1f %%)", t.Peer, t.Retrans, t.Segments, 100*retransPart(t))
	}
	if !far && !lossy {
		return false
	}
	if n := sr.NFS; n != nil && (n.Retrans > 0 || n.Timeouts > 0) {
		v.add("%d RPCs were sent again, %d timed out", n.Retrans, n.Timeouts)
	}
	v.cause, v.confirmed = Network, 1
	j.others(g, v)
	return true
}

// replacements are the times after which open-iscsi gives a session up, as SM sets them.
var replacements = []time.Duration{15 * time.Second, 144 * time.Second}

// storageElse looks for what makes storage slow that is not the storage itself.
func (j *judge) storageElse(g *judged, v *verdict) bool {
	d := g.d
	sr, _ := j.sr(d)
	longest := max(d.Requests[Read].Layers[event.LayerTotal].Max, d.Requests[Write].Layers[event.LayerTotal].Max)
	if sr != nil && sr.Paths != nil && (sr.Paths.Events > 0 || sr.Paths.Active < sr.Paths.Total) && longest >= time.Second {
		v.cause, v.confirmed = PathFailover, 1
		v.add("%d of %d paths are active; %d events%s", sr.Paths.Active, sr.Paths.Total, sr.Paths.Events, inBrackets(sr.Paths.Last))
		v.add("the longest request took %s", Span(longest))
		j.others(g, v)
		return true
	}
	if strings.Contains(d.SRType, "iscsi") && (sr == nil || sr.Paths == nil) {
		for _, r := range replacements {
			if longest > r*9/10 && longest < r*12/10 {
				v.cause = PathFailover
				v.add("the longest request took %s, about the %s after which a lost iSCSI session is given up; paths were not looked at", Span(longest), r)
				return true
			}
		}
	}
	if j.network(g, v) {
		return true
	}
	return j.noisy(g, v)
}

// noisy looks for another disk of the SR whose load rose as this one's latency did.
func (j *judge) noisy(g *judged, v *verdict) bool {
	sr, base := j.sr(g.d)
	if sr == nil && g.d.SR == "" || base == nil || len(base.Seen.Kept) < needWindows {
		return false
	}
	var rate, bytes float64
	for _, o := range j.disks {
		if o.d.SR == g.d.SR {
			rate, bytes = rate+o.rate, bytes+o.bytes
		}
	}
	// A device that serves less than before is slow by itself.
	usualRate := median(base.Seen.Kept, func(s *srSeen) float64 { return float64(s.Rate) })
	usualBytes := median(base.Seen.Kept, func(s *srSeen) float64 { return float64(s.Bytes) })
	if rate < srGrown*usualRate && bytes < srGrown*usualBytes {
		return false
	}
	type grown struct {
		o    *judged
		part float64
		says string
	}
	var all []grown
	for _, o := range j.disks {
		if o == g || o.d.SR != g.d.SR {
			continue
		}
		was := around{}
		if b := j.b.disks[o.d.ID]; b != nil && len(b.Around.Kept) > 0 {
			was.Rate = float32(quantile(b.Around.Kept, 0.75, func(a *around) float64 { return float64(a.Rate) }))
			was.Bytes = float32(quantile(b.Around.Kept, 0.75, func(a *around) float64 { return float64(a.Bytes) }))
		}
		part := max((o.rate-float64(was.Rate))/max(rate, 1), (o.bytes-float64(was.Bytes))/max(bytes, 1))
		if part < neighbourPart || (o.rate < neighbourGrown*float64(was.Rate) && o.bytes < neighbourGrown*float64(was.Bytes)) {
			continue
		}
		all = append(all, grown{o, part, fmt.Sprintf("%.0f requests and %.1f MB a second, before %.0f and %.1f as a rule: %.0f %% of the SR's load",
			o.rate, o.bytes/1e6, was.Rate, was.Bytes/1e6, 100*max(o.rate/max(rate, 1), o.bytes/max(bytes, 1)))})
	}
	if len(all) == 0 {
		return false
	}
	slices.SortStableFunc(all, func(a, b grown) int { return cmp.Compare(b.part, a.part) })
	v.cause, v.confirmed = NoisyNeighbour, 1
	v.add("the load of %s rose while this disk's latency at the storage did", whoOf(all[0].o.d))
	v.add("the SR serves %.0f requests and %.1f MB a second (usual %.0f and %.1f): it is not slower, it has more to do", rate, bytes/1e6, usualRate, usualBytes/1e6)
	for _, n := range all[:min(len(all), 3)] {
		v.near = append(v.near, Neighbour{whoOf(n.o.d), n.says})
	}
	return true
}

// loaded is for a disk that is slower only as its load explains.
func (j *judge) loaded(g *judged) verdict {
	d, s := g.d, &g.share
	if v, ok := j.limited(g); ok {
		return v
	}
	if thread := s[event.LayerTapdisk] + s[event.LayerPickup] + s[event.LayerCopy]; threadBusy(d) && thread >= 0.4 {
		v := verdict{place: g.top()[0].layer.String(), share: thread}
		j.thread(g, &v)
		return v
	}
	switch top := g.top()[0].layer; { // what does not wait for the storage is told as such
	case top == event.LayerMetadata && s[top] >= 0.5 && d.Process != nil && d.Ring != nil && !full(d):
		v := verdict{place: top.String(), share: s[top]}
		j.chain(g, &v)
		return v
	case top == event.LayerSubmit && s[top] >= 0.5:
		v := verdict{cause: SubmitBlocking, place: top.String(), share: s[top]}
		v.add("more requests than usual are there at once, and each io_submit waits until the kernel has taken what it hands over")
		return v
	}
	m := g.main
	v := verdict{cause: OwnLoad, share: 1}
	if depth := depthOf(d); depth > 0 && m.usual.depth > 0 {
		v.add("%.0f requests at once where %.0f are usual, %.0f a second where %.0f are: each waits for those before it", depth, m.usual.depth, m.rate, m.usual.rate)
	} else {
		v.add("%.0f requests a second where %.0f are usual; how many are there at once is not known", m.rate, m.usual.rate)
	}
	v.add("the longer time is %s", layerWords[g.top()[0].layer])
	return v
}

// beside is for a disk whose requests take no longer than usual once they are taken
// off the ring.
func (j *judge) beside(g *judged, requests uint64) verdict {
	d := g.d
	v := verdict{cause: Healthy}
	if e := d.Emulated; e != nil && float64(e.Requests) >= emulatedMany*j.w.Duration.Seconds() && e.Requests >= requests && e.CPU >= emulatorWorks {
		v.cause, v.place, v.confirmed = EmulatedDisk, placeEmulator, 0
		v.add("%d requests came by the emulated disk, %d by the guest's own driver", e.Requests, requests)
		v.add("the emulator ran for %.0f %% of the time", 100*e.CPU)
		if e.CPU >= 0.3 {
			v.confirmed = 1
		}
		return v
	}
	if p := d.Process; p != nil && p.Paused >= pauseLong {
		v.cause, v.place = Pause, placeRing
		v.add("its tapdisk was paused for %s: what the guest asked for meanwhile waited on the ring", Span(p.Paused))
		for i := range j.w.Operations {
			if o := &j.w.Operations[i]; pauses(o.Kind) && j.concerns(o, d) != "" {
				v.confirmed = 1
			}
		}
		return v
	}
	if j.waits(g, &v) {
		return v
	}
	n := uint64(0)
	for _, m := range g.ops {
		if m != nil {
			n = max(n, m.n)
		}
	}
	if n < fewRequests {
		v.cause = TooFew
		v.add("%d requests: fewer than %d of a kind say nothing", requests, fewRequests)
		return v
	}
	for _, m := range g.ops {
		if m == nil || m.n < fewRequests {
			continue
		}
		t := &d.Requests[m.op].Layers[event.LayerTotal]
		say := fmt.Sprintf("%d %ss: %s on average, p99 %s, %.0f a second", m.n, m.op, span(m.mean[event.LayerTotal]), Span(t.Quantile(0.99)), perSecond(m.n, j.w))
		if m.usual.from != fromDefaults {
			say += fmt.Sprintf("; usual %s", span(m.usual.mean[event.LayerTotal]))
		}
		v.add("%s", say)
	}
	if !d.Layered {
		v.add("only the block layer and below are seen of this kind of disk (%s)", d.Backend)
	}
	return v
}

// waits is for requests that wait on the ring.
func (j *judge) waits(g *judged, v *verdict) bool {
	d := g.d
	if d.Ring == nil || d.Ring.Samples < 3 || d.Ring.Waiting < waitingLeast {
		return false
	}
	barriers := float64(d.Barriers) / j.w.Duration.Seconds()
	manyBarriers := barriers >= barriersMany && float64(d.Barriers) >= barriersPart*float64(g.requests())
	usual, known := 0.0, false
	if b := j.b.disks[d.ID]; b != nil && len(b.Around.Kept) >= needWindows {
		known = true
		usual = quantile(b.Around.Kept, 0.9, func(a *around) float64 { return float64(a.Waiting) })
		manyBarriers = manyBarriers && barriers >= 2*quantile(b.Around.Kept, 0.9, func(a *around) float64 { return float64(a.Barriers) })
	}
	if d.Ring.Waiting < waitingRatio*max(usual, 0.5) {
		return false
	}
	full := d.Ring.Full >= fullOften
	// Barriers of a tapdisk's guest are not counted anywhere. When tapdisk leaves requests
	// on the ring and nothing of dom0 keeps it from them, it waits for those before one.
	guessed := d.Barriers == 0 && !full && known && d.Ring.Waiting >= waitingRatio*max(usual, waitingLeast) && g.idleThread() && !j.stolen()
	if !manyBarriers && !full && !guessed {
		return false
	}
	v.place = placeRing
	if g.rate > 0 {
		v.add("%.1f requests wait on the ring on average, %s each (usual %.1f requests)", d.Ring.Waiting, span(1e9*d.Ring.Waiting/g.rate), usual)
	} else {
		v.add("%.1f requests wait on the ring on average (usual %.1f)", d.Ring.Waiting, usual)
	}
	v.add("once taken off it they take as long as usual")
	if manyBarriers {
		v.cause, v.confirmed = FlushStorm, 1
		v.add("the guest sent %.0f barriers a second, for %.0f requests: nothing more is taken off the ring until all before one are done", barriers, g.rate)
		return true
	}
	if full {
		v.cause = QueueLimit
		fullWords(d, v)
		return true
	}
	v.cause, v.confirmed = FlushStorm, -1
	v.add("tapdisk has CPU left, a free place and no pause: it leaves them there while it waits for those before a barrier. Barriers themselves are not seen")
	return true
}

// idleThread tells whether nothing is seen that keeps tapdisk from the ring.
func (g *judged) idleThread() bool {
	p := g.d.Process
	return p != nil && p.CPU < 0.5 && p.RunQueue < 0.05 && p.Paused == 0 && p.NoSlots < fullOften
}
