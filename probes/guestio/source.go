//go:build linux

package guestio

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/guestio/shm"
	"github.com/xenserver/dtagent/probes/guestio/stat"
)

// plan is whose I/O a disk's is.
type plan struct {
	sources []bpf.DiskSource
	devices []device
	pids    []uint32
	why     string   // there is none, or what else is counted with it
	tap     *tapdisk // that serves it
	images  []image  // of tapdisk
	more    int      // images that are left out
}

// planner makes the plans of all disks that there are, for one depends on the others.
type planner struct {
	host
	mounts  []stat.Mount
	users   map[device]int    // how many disks are on a device, or on its partitions
	qemuOf  map[uint32]uint32 // by domain; nil: not looked for yet
	claimed map[claim]*vbd
	taps    map[uint32]*tapdisk // by process
	byVBD   map[shm.VBD][]uint32
	served  map[uint32]*vbd // by tapdisk
}

// claim is what only one disk can have.
type claim struct{ tgid, dev uint32 }

// plans returns the plan of each disk. They are to be in order.
func (h host) plans(all []*vbd, taps []tapdisk, mounts []stat.Mount) map[key]plan {
	p := planner{
		host: h, mounts: mounts, users: map[device]int{}, claimed: map[claim]*vbd{}, taps: map[uint32]*tapdisk{}, byVBD: map[shm.VBD][]uint32{}, served: map[uint32]*vbd{},
	}
	for i := range taps {
		t := &taps[i]
		p.taps[t.TGID] = t
		for _, v := range t.VBDs {
			p.byVBD[v] = append(p.byVBD[v], t.TGID)
		}
	}
	for _, v := range all {
		if d, ok := p.own(v); ok {
			p.users[d]++
			if whole := p.whole(d); whole != d {
				p.users[whole]++
			}
		}
	}
	out := make(map[key]plan, len(all))
	first := map[key][]string{}
	for _, v := range all {
		pl := p.plan(v)
		if owner := p.taken(pl); owner != nil {
			first[owner.key] = append(first[owner.key], v.name())
			pl = plan{why: fmt.Sprintf("counted with %s: both are files of one QEMU on one file system", owner.name())}
		} else {
			for _, s := range pl.sources {
				p.claimed[claim{s.TGID, s.Dev}] = v
			}
		}
		out[v.key] = pl
	}
	for k, others := range first {
		pl := out[k]
		pl.why = "with " + strings.Join(others, ", ") + ": files of one QEMU on one file system"
		out[k] = pl
	}
	return out
}

// own returns the block device that is the disk, if one is.
func (p *planner) own(v *vbd) (device, bool) {
	switch v.kind {
	case Blkback:
		return parseDevice(v.physical, 16)
	case Qdisk:
		var st unix.Stat_t
		if path := imagePath(v.params); onNetwork(p.mounts, path) != nil || unix.Stat(path, &st) != nil {
			return device{}, false
		}
		d, itself, err := behind(&st)
		return d, itself && err == nil
	}
	return device{}, false
}

// imagePath returns the file of a qdisk: params is format:path.
func imagePath(params string) string {
	if _, path, ok := strings.Cut(params, ":"); ok {
		return path
	}
	return params
}

// taken returns the disk that has one of a plan's claims already.
func (p *planner) taken(pl plan) *vbd {
	for _, s := range pl.sources {
		if v := p.claimed[claim{s.TGID, s.Dev}]; v != nil {
			return v
		}
	}
	return nil
}

func (p *planner) plan(v *vbd) plan {
	switch v.kind {
	case Blkback:
		return p.blkback(v)
	case Qdisk:
		return p.qdisk(v)
	}
	return p.tapdisk(v)
}

// blkback: its threads are known by their names, so that they need not be there yet.
// Only when several disks have one device it takes their numbers.
func (p *planner) blkback(v *vbd) plan {
	d, ok := p.own(v)
	switch {
	case !ok && v.physical != "":
		return plan{why: fmt.Sprintf("physical-device %q is not understood", v.physical)}
	case !ok:
		return plan{why: "its backend has no device yet (physical-device)"}
	case v.device == "":
		return plan{why: "its backend has no name yet (dev), nor has its thread"}
	}
	name := fmt.Sprintf("%d.%s-", v.domid, v.device)
	whole := p.whole(d)
	if p.users[d] == 1 && p.users[whole] == 1 {
		pl := plan{devices: []device{d}}
		pl.add(bpf.DiskSource{Comm: name}, d, whole)
		return pl
	}
	pl := plan{devices: []device{d}, pids: p.threads(name)}
	if len(pl.pids) == 0 {
		return plan{why: fmt.Sprintf("other disks have device %s, too, and there is no thread %s… yet", d, name)}
	}
	for _, pid := range pl.pids {
		pl.add(bpf.DiskSource{TGID: pid}, d, whole)
	}
	return pl
}

// qdisk: what is written to a block device may be written out by others later, so
// all at a device that is one disk's alone is its. At a file system it is QEMU's.
func (p *planner) qdisk(v *vbd) plan {
	path := imagePath(v.params)
	if path == "" {
		return plan{why: "no medium"}
	}
	if !isPath(path) {
		return plan{why: fmt.Sprintf("what QEMU has opened is no file: %s", shownParams(v.params))}
	}
	if onNetwork(p.mounts, path) != nil {
		return plan{why: fmt.Sprintf("%s is %s", path, errNoDevice)}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return plan{why: (&os.PathError{Op: "stat", Path: path, Err: err}).Error()}
	}
	d, itself, err := behind(&st)
	if err != nil {
		return plan{why: fmt.Sprintf("%s is %s", path, err)}
	}
	pl := plan{devices: []device{d}}
	whole := p.whole(d)
	alone := itself && p.users[d] == 1
	if alone {
		pl.sources = []bpf.DiskSource{{Dev: d.number(), Whole: whole.number()}}
		if whole == d {
			return pl
		}
	}
	// Up to Linux 5.11 what is queued for a partition shows as queued for the disk.
	if p.qemuOf == nil {
		p.qemuOf = p.qemus()
	}
	pid := p.qemuOf[v.domid]
	switch {
	case pid == 0 && !alone:
		return plan{why: fmt.Sprintf("there is no QEMU with %s %d", domidFlag, v.domid)}
	case pid == 0:
		return pl
	case alone:
		pl.sources = append(pl.sources, bpf.DiskSource{TGID: pid, Dev: whole.number(), Whole: whole.number()})
	default:
		pl.add(bpf.DiskSource{TGID: pid}, d, whole)
	}
	pl.pids = []uint32{pid}
	return pl
}

// tapdisk serves one disk: all at the devices of its images is that disk's.
func (p *planner) tapdisk(v *vbd) plan {
	t, why := p.serves(v)
	if t == nil {
		return plan{why: why}
	}
	pl := plan{tap: t, pids: []uint32{t.TGID}}
	if other := p.served[t.TGID]; other != nil {
		return plan{why: fmt.Sprintf("counted with %s: tapdisk %d serves both", other.name(), t.TGID)}
	}
	p.served[t.TGID] = v
	var err error
	if pl.images, pl.more, err = p.images(t.TGID, p.mounts); err != nil && !errors.Is(err, os.ErrNotExist) {
		pl.why = err.Error()
		return pl
	}
	for _, im := range pl.images {
		if im.block && !slices.Contains(pl.devices, im.on) {
			pl.devices = append(pl.devices, im.on)
			pl.add(bpf.DiskSource{TGID: t.TGID}, im.on, p.whole(im.on))
		}
	}
	if len(pl.devices) > 0 {
		return pl
	}
	switch {
	case len(pl.images) > 0:
		pl.why = fmt.Sprintf("tapdisk %d has its images on no block device", t.TGID)
	default:
		pl.why = fmt.Sprintf("tapdisk %d has no file on a block device open", t.TGID)
	}
	return pl
}

// serves returns the tapdisk of a disk, else why there is none.
func (p *planner) serves(v *vbd) (t *tapdisk, why string) {
	var gone bool
	for _, tgid := range append([]uint32{v.pid}, p.byVBD[shm.VBD{Domid: v.domid, Devid: v.devid}]...) {
		if tgid == 0 || t != nil && t.TGID == tgid {
			continue
		}
		other := p.taps[tgid]
		if other == nil {
			var ok bool
			if other, ok = p.process(tgid); !ok {
				gone = true
				continue
			}
			p.taps[tgid] = other
		}
		// While one takes over from another the one that xenstore names is it, else the younger.
		if t == nil || t.TGID != v.pid && other.start > t.start {
			t = other
		}
	}
	switch {
	case t != nil:
		return t, ""
	case gone:
		return nil, "its tapdisk is no more"
	}
	return nil, "its backend has no tapdisk yet (kthread-pid)"
}

// add adds a source at a device; of a partition also at its disk, for which the I/O
// shows to be queued up to Linux 5.11.
func (pl *plan) add(s bpf.DiskSource, d, whole device) {
	for _, at := range []device{d, whole} {
		s.Dev, s.Whole = at.number(), whole.number()
		if !slices.Contains(pl.sources, s) {
			pl.sources = append(pl.sources, s)
		}
	}
}
