//go:build linux

package guestio

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/xenstore"
	"github.com/xenserver/dtagent/testenv/xenstored"
)

// kernel is a kernel side that only keeps what it is told. As the real one it does
// not let two disks have the same source.
type kernel struct {
	mu       sync.Mutex
	attached bool
	disks    map[uint32][]bpf.DiskSource
	next     uint32
	max      int
	stats    map[uint32]bpf.DiskStats
	wrong    []string
}

func newKernel() *kernel {
	return &kernel{disks: map[uint32][]bpf.DiskSource{}, stats: map[uint32]bpf.DiskStats{}, max: 100}
}

func (k *kernel) Attach(bpf.Probe) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.attached = true
	return nil
}
func (k *kernel) Detach(bpf.Probe) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.attached = false
	return nil
}
func (k *kernel) Losses() []bpf.Loss {
	return []bpf.Loss{{Probe: bpf.Stream, Cause: "x", Count: 1}, {Probe: bpf.Disk, Cause: "y", Count: 2}}
}

func (k *kernel) AddDisk(s []bpf.DiskSource) (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.disks) >= k.max {
		return 0, bpf.ErrDisks
	}
	slot := k.next
	k.next++
	k.disks[slot] = nil
	return slot, k.set(slot, s)
}

func (k *kernel) SetDisk(slot uint32, s []bpf.DiskSource) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set(slot, s)
}

func (k *kernel) set(slot uint32, s []bpf.DiskSource) error {
	for other, have := range k.disks {
		for _, o := range have {
			if other != slot && slices.ContainsFunc(s, func(n bpf.DiskSource) bool { return n.TGID == o.TGID && n.Dev == o.Dev }) {
				k.wrong = append(k.wrong, fmt.Sprintf("disks %d and %d: %+v", slot, other, o))
				return bpf.ErrDiskTaken
			}
		}
	}
	k.disks[slot] = slices.Clone(s)
	return nil
}

func (k *kernel) RemoveDisk(slot uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.disks, slot)
	return nil
}

func (k *kernel) DiskStats(slot uint32, out *bpf.DiskStats) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.disks[slot]; !ok {
		return os.ErrNotExist
	}
	*out = k.stats[slot]
	return nil
}

func (k *kernel) sources() [][]bpf.DiskSource {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out [][]bpf.DiskSource
	for _, slot := range slices.Sorted(maps.Keys(k.disks)) {
		out = append(out, k.disks[slot])
	}
	return out
}

// lab is a host of files: xenstored, /proc, /sys.
type lab struct {
	t     testing.TB
	store *xenstored.Server
	path  string // of its socket
	proc  string
	sys   string
	k     *kernel
	p     *Probe
}

func newLab(t testing.TB) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, path: filepath.Join(dir, "socket"), proc: filepath.Join(dir, "proc"), sys: filepath.Join(dir, "sys"), k: newKernel()}
	var err error
	l.store, err = xenstored.Start(l.path)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { l.store.Close() })
	l.p = New(Options{Kernel: l.k, Xenstore: []string{l.path}, Proc: l.proc, Sys: l.sys})
	return l
}

// process makes a process of files; without arguments a kernel thread.
func (l *lab) process(pid int, comm string, args ...string) {
	l.t.Helper()
	at := filepath.Join(l.proc, fmt.Sprint(pid))
	qt.Assert(l.t, qt.IsNil(os.MkdirAll(filepath.Join(at, "fd"), 0o755)))
	line := strings.Join(args, "\x00")
	if line != "" {
		line += "\x00"
	}
	qt.Assert(l.t, qt.IsNil(os.WriteFile(filepath.Join(at, "cmdline"), []byte(line), 0o644)))
	qt.Assert(l.t, qt.IsNil(os.WriteFile(filepath.Join(at, "comm"), []byte(comm+"\n"), 0o644)))
}

// guest makes a domain.
func (l *lab) guest(domid int, name, uuid string) {
	l.store.SetAll(fmt.Sprintf("/local/domain/%d", domid), map[string]string{"name": name, "vm": "/vm/" + uuid})
}

// vbd makes a backend.
func (l *lab) vbd(kind string, domid, devid int, device string, more map[string]string) {
	nodes := map[string]string{"dev": device, "mode": "w", "frontend-id": fmt.Sprint(domid)}
	maps.Copy(nodes, more)
	l.store.SetAll(fmt.Sprintf("%s/%s/%d/%d", backends, kind, domid, devid), nodes)
}

func (l *lab) watch() *Watcher {
	l.t.Helper()
	w, err := l.p.Watch(l.t.Context())
	qt.Assert(l.t, qt.IsNil(err))
	l.t.Cleanup(w.Close)
	return w
}

// until takes samples until f is content; the deadline only ends a hang.
func until(t testing.TB, w *Watcher, what string, f func(*Sample) bool) *Sample {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s := w.Sample()
		if f(s) {
			return s
		}
		qt.Assert(t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("not in a minute: %s: %+v", what, s))
	}
}

func dev(major, minor uint32) uint32 { return bpf.DevNumber(major, minor) }

func TestBlkback(t *testing.T) {
	l := newLab(t)
	l.guest(5, "web", "u-5")
	l.vbd(Blkback, 5, 51712, "xvda", map[string]string{"physical-device": "fd:1a", "params": "/dev/vg/web"})
	w := l.watch()
	qt.Check(t, qt.IsTrue(l.k.attached))
	s := w.Sample()
	qt.Assert(t, qt.HasLen(s.VBDs, 1))
	v := s.VBDs[0]
	qt.Check(t, qt.IsTrue(v.Seen), qt.Commentf(v.Why))
	qt.Check(t, qt.Equals(v.Domain, "web"))
	qt.Check(t, qt.Equals(v.VMUUID, "u-5"))
	qt.Check(t, qt.Equals(v.Backend, "/local/domain/0/backend/vbd/5/51712"))
	qt.Check(t, qt.DeepEquals(v.Devices, []string{"253:26"}))
	d := dev(253, 26)
	qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{{{Dev: d, Whole: d, Comm: "5.xvda-"}}}))
	qt.Check(t, qt.DeepEquals(s.Losses, []Loss{{"y", 2}}))

	// A second one comes, without a device at first.
	l.guest(6, "db", "u-6")
	l.vbd(Blkback, 6, 51728, "/dev/xvdb", nil)
	until(t, w, "it is there, and waits", func(s *Sample) bool {
		return len(s.VBDs) == 2 && !s.VBDs[1].Seen && strings.Contains(s.VBDs[1].Why, "no device yet")
	})
	l.store.Set(backends+"/vbd/6/51728/physical-device", "7:0")
	until(t, w, "it is counted", func(s *Sample) bool { return len(s.VBDs) == 2 && s.VBDs[1].Seen && s.VBDs[1].Why == "" })
	e := dev(7, 0)
	qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{{{Dev: d, Whole: d, Comm: "5.xvda-"}}, {{Dev: e, Whole: e, Comm: "6.xvdb-"}}}))

	// A third one has the same device: now it is the threads that tell them apart.
	l.process(77, "5.xvda-0")
	l.process(78, "5.xvda-1")
	l.process(79, "5.xvda-0", "a", "program", "of", "that", "name")
	l.process(80, "9.xvda-0")
	l.vbd(Blkback, 9, 51712, "xvda", map[string]string{"physical-device": "fd:1a", "mode": "r"})
	s = until(t, w, "all are counted", func(s *Sample) bool { return len(s.VBDs) == 3 && s.VBDs[2].Seen })
	qt.Check(t, qt.DeepEquals(s.VBDs[0].PIDs, []uint32{77, 78}))
	qt.Check(t, qt.DeepEquals(s.VBDs[2].PIDs, []uint32{80}))
	qt.Check(t, qt.Equals(s.VBDs[2].Mode, "r"))
	qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{
		{{TGID: 77, Dev: d, Whole: d}, {TGID: 78, Dev: d, Whole: d}}, {{Dev: e, Whole: e, Comm: "6.xvdb-"}}, {{TGID: 80, Dev: d, Whole: d}},
	}))

	// It goes, and the first is alone again.
	l.store.Remove(backends + "/vbd/9")
	until(t, w, "it is gone", func(s *Sample) bool { return len(s.VBDs) == 2 && s.VBDs[0].PIDs == nil })
	qt.Check(t, qt.DeepEquals(l.k.sources()[0], []bpf.DiskSource{{Dev: d, Whole: d, Comm: "5.xvda-"}}))
	qt.Check(t, qt.HasLen(l.k.wrong, 0))

	w.Close()
	w.Close()
	qt.Check(t, qt.IsFalse(l.k.attached))
	qt.Check(t, qt.HasLen(l.k.sources(), 0))
}

// The number of a domain that has gone is given to another: it begins anew, even if
// the end of the first was not seen.
func TestDomidReused(t *testing.T) {
	l := newLab(t)
	l.guest(5, "web", "u-5")
	l.vbd(Blkback, 5, 51712, "xvda", map[string]string{"physical-device": "7:0"})
	w := l.watch()
	l.k.mu.Lock()
	l.k.stats[0] = bpf.DiskStats{Ops: [bpf.NumDiskOps]bpf.DiskStat{{Begun: 7, Bytes: 7 * 4096}}}
	l.k.mu.Unlock()
	s := w.Sample()
	qt.Check(t, qt.Equals(s.VBDs[0].Read.Interval.Ops, 7))
	qt.Check(t, qt.Equals(w.Sample().VBDs[0].Read.Interval.Ops, 0))
	l.guest(5, "db", "u-6") // which has no event, so the next one shows it
	l.store.Set(backends+"/vbd/5/51712/state", "4")
	s = until(t, w, "another guest's", func(s *Sample) bool { return len(s.VBDs) == 1 && s.VBDs[0].VMUUID == "u-6" })
	qt.Check(t, qt.Equals(s.VBDs[0].Domain, "db"))
	qt.Check(t, qt.Equals(s.VBDs[0].Read.Total.Ops, 0))
	qt.Check(t, qt.IsTrue(s.VBDs[0].Since.After(s.Since)))
	qt.Check(t, qt.HasLen(l.k.sources(), 1))
}

func TestQdiskAndTapdisk(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Stat(dir, &st)))
	on := deviceOf(st.Dev)
	if on.major == 0 {
		t.Skip("needs temporary files on a block device")
	}
	file := func(name string) string {
		at := filepath.Join(dir, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(at, nil, 0o600)))
		return at
	}
	l.guest(5, "web", "u-5")
	l.vbd(Qdisk, 5, 51712, "xvda", map[string]string{"params": "aio:" + file("a")})
	l.vbd(Qdisk, 5, 51728, "xvdb", map[string]string{"params": "qcow2:" + file("b")})
	l.vbd(Qdisk, 5, 51744, "xvdc", map[string]string{"params": ""})
	l.vbd(Qdisk, 5, 51760, "xvdd", map[string]string{"params": "aio:" + filepath.Join(dir, "absent")})
	l.vbd(Qdisk, 5, 51776, "xvde", map[string]string{"params": "aio:/proc/version"})
	l.vbd(Qdisk, 6, 51712, "xvda", map[string]string{"params": "aio:" + file("c")})
	l.vbd(Tapdisk, 7, 51712, "xvda", map[string]string{"kthread-pid": "91"})
	l.vbd(Tapdisk, 8, 51712, "xvda", nil)
	l.process(90, "qemu-system-i38", "qemu", "-xen-domid", "5", "-machine", "xenpv")
	l.process(91, "tapdisk", "tapdisk")
	l.process(92, "sh", "sh", "-c", "qemu -xen-domid 6")
	qt.Assert(t, qt.IsNil(os.Symlink(file("vhd"), filepath.Join(l.proc, "91", "fd", "7"))))
	qt.Assert(t, qt.IsNil(os.Symlink("/dev/null", filepath.Join(l.proc, "91", "fd", "8"))))
	s := l.watch().Sample()
	why := map[string]string{}
	for _, v := range s.VBDs {
		why[fmt.Sprintf("%d %s", v.Domid, v.Device)] = fmt.Sprintf("%t %s", v.Seen, v.Why)
	}
	qt.Check(t, qt.DeepEquals(why, map[string]string{
		"5 xvda": "true with xvdb: files of one QEMU on one file system",
		"5 xvdb": "false counted with xvda: both are files of one QEMU on one file system",
		"5 xvdc": "false no medium",
		"5 xvdd": "false stat " + filepath.Join(dir, "absent") + ": no such file or directory",
		"5 xvde": "false /proc/version is on a file system without a block device",
		"6 xvda": "false there is no QEMU with -xen-domid 6",
		"7 xvda": "true ",
		"8 xvda": "false its backend has no tapdisk yet (kthread-pid)",
	}))
	got := map[uint32]bool{}
	for _, sources := range l.k.sources() {
		for _, o := range sources {
			qt.Check(t, qt.Equals(o.Comm, ""))
			got[o.TGID] = true
		}
	}
	qt.Check(t, qt.DeepEquals(got, map[uint32]bool{90: true, 91: true}))
	qt.Check(t, qt.HasLen(l.k.wrong, 0))
}

// Partitions: what is queued for one shows as queued for the disk in older kernels.
func TestPartitions(t *testing.T) {
	l := newLab(t)
	for name, dev := range map[string]string{"sda": "8:0", "sda/sda1": "8:1", "sda/sda2": "8:2"} {
		at := filepath.Join(l.sys, "block", name)
		qt.Assert(t, qt.IsNil(os.MkdirAll(at, 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "dev"), []byte(dev+"\n"), 0o644)))
		if strings.Contains(name, "/") {
			qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "partition"), []byte("1\n"), 0o644)))
		}
		link := filepath.Join(l.sys, "dev", "block", dev)
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(link), 0o755)))
		qt.Assert(t, qt.IsNil(os.Symlink(at, link)))
	}
	l.vbd(Blkback, 5, 51712, "xvda", map[string]string{"physical-device": "8:1"})
	w := l.watch()
	one, two, all := dev(8, 1), dev(8, 2), dev(8, 0)
	qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{{{Dev: one, Whole: all, Comm: "5.xvda-"}, {Dev: all, Whole: all, Comm: "5.xvda-"}}}))
	// Two disks of one disk: by their threads.
	l.process(77, "5.xvda-0")
	l.process(78, "6.xvda-0")
	l.vbd(Blkback, 6, 51712, "xvda", map[string]string{"physical-device": "8:2"})
	until(t, w, "both are counted", func(s *Sample) bool { return len(s.VBDs) == 2 && s.VBDs[1].Seen })
	qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{
		{{TGID: 77, Dev: one, Whole: all}, {TGID: 77, Dev: all, Whole: all}}, {{TGID: 78, Dev: two, Whole: all}, {TGID: 78, Dev: all, Whole: all}},
	}))
	qt.Check(t, qt.HasLen(l.k.wrong, 0))
}

// More disks than there is room for: those that do not fit say so, until one goes.
func TestTooMany(t *testing.T) {
	l := newLab(t)
	l.k.max = 1
	l.vbd(Blkback, 5, 51712, "xvda", map[string]string{"physical-device": "7:0"})
	l.vbd(Blkback, 5, 51728, "xvdb", map[string]string{"physical-device": "7:1"})
	w := l.watch()
	s := w.Sample()
	qt.Check(t, qt.IsTrue(s.VBDs[0].Seen))
	qt.Check(t, qt.IsFalse(s.VBDs[1].Seen))
	qt.Check(t, qt.Equals(s.VBDs[1].Why, bpf.ErrDisks.Error()))
	l.store.Remove(backends + "/vbd/5/51712")
	until(t, w, "the other is counted", func(s *Sample) bool { return len(s.VBDs) == 1 && s.VBDs[0].Seen })
}

// xenstored goes and comes again: what is known goes on being counted meanwhile.
func TestXenstoredRestarts(t *testing.T) {
	l := newLab(t)
	l.vbd(Blkback, 5, 51712, "xvda", map[string]string{"physical-device": "7:0"})
	w := l.watch()
	qt.Assert(t, qt.IsNil(l.store.Close()))
	s := until(t, w, "that it has gone is told", func(s *Sample) bool { return s.Trouble != "" })
	qt.Check(t, qt.HasLen(s.VBDs, 1))
	qt.Check(t, qt.IsTrue(s.VBDs[0].Seen))
	var err error
	l.store, err = xenstored.Start(l.path)
	qt.Assert(t, qt.IsNil(err))
	l.vbd(Blkback, 6, 51712, "xvda", map[string]string{"physical-device": "7:1"})
	until(t, w, "the new one is seen", func(s *Sample) bool { return s.Trouble == "" && len(s.VBDs) == 1 && s.VBDs[0].Domid == 6 })
}

func TestWatchersShare(t *testing.T) {
	l := newLab(t)
	_, err := New(Options{Kernel: l.k, Xenstore: []string{filepath.Join(t.TempDir(), "absent")}}).Watch(t.Context())
	qt.Check(t, qt.ErrorIs(err, xenstore.ErrNone))
	qt.Check(t, qt.ErrorMatches(err, ".*Xen dom0.*"))
	qt.Check(t, qt.IsFalse(l.k.attached))

	a, b := l.watch(), l.watch()
	a.Close()
	qt.Check(t, qt.IsTrue(l.k.attached))
	qt.Check(t, qt.HasLen(b.Sample().VBDs, 0))
	b.Close()
	qt.Check(t, qt.IsFalse(l.k.attached))
	c := l.watch()
	qt.Check(t, qt.IsTrue(l.k.attached))
	c.Close()
	ended, end := context.WithCancel(t.Context())
	end()
	_, err = l.p.Watch(ended)
	qt.Check(t, qt.IsTrue(errors.Is(err, context.Canceled)), qt.Commentf("%v", err))
	qt.Check(t, qt.IsFalse(l.k.attached))
}

func TestLatency(t *testing.T) {
	var s bpf.DiskStat
	qt.Check(t, qt.IsNil(latency(&s, true)))
	add := func(us, n uint64) {
		for i := range s.Bucket {
			if _, to := bpf.DiskBucket(i); uint64(to) > us*1000 {
				s.Bucket[i] += uint32(n)
				break
			}
		}
		s.Done, s.SumNs, s.MaxNs = s.Done+n, s.SumNs+n*us*1000, max(s.MaxNs, us*1000)
	}
	add(100, 98)
	add(5000, 1)
	add(70000, 1)
	near := func(got, want float64) {
		t.Helper()
		qt.Check(t, qt.IsTrue(got > want*0.96 && got < want*1.04), qt.Commentf("%.1f for %.1f", got, want))
	}
	l := latency(&s, true)
	near(l.P50, 100)
	near(l.P99, 5000)
	qt.Check(t, qt.Equals(l.Max, 70000))
	qt.Check(t, qt.Equals(l.Mean, (98*100+5000+70000)/100.))
	qt.Check(t, qt.DeepEquals(l.Octaves, []uint64{5: 98, 11: 1, 15: 1}))
	qt.Check(t, qt.Equals(l.Hist.SumNs, s.SumNs))
	before := s
	add(200, 10)
	step := since(&s, &before)
	qt.Check(t, qt.Equals(step.Done, 10))
	l = latency(&step, false)
	near(l.P50, 200)
	qt.Check(t, qt.IsTrue(l.Max >= 200 && l.Max < 213)) // the bucket's end, not what was before
	qt.Check(t, qt.Equals(l.Mean, 200))
	var long bpf.DiskStat
	long.Bucket[len(long.Bucket)-1], long.Done, long.SumNs, long.MaxNs = 1, 1, 3e11, 3e11
	l = latency(&long, false)
	qt.Check(t, qt.Equals(l.Max, 3e8))
	qt.Check(t, qt.IsTrue(l.P50 <= l.Max))
}

func FuzzParseKey(f *testing.F) {
	f.Add("/local/domain/0/backend/vbd/5/51712/state")
	f.Add("/local/domain/0/backend/qdisk/5/51712")
	f.Add("/local/domain/0/backend/vbd/-1/x")
	f.Fuzz(func(t *testing.T, p string) {
		if k, ok := parseKey(p); ok {
			if again, ok := parseKey(k.path()); !ok || again != k {
				t.Fatalf("%q: %+v is not %+v", p, again, k)
			}
		}
	})
}

func FuzzParseDevice(f *testing.F) {
	f.Add("fd:1a")
	f.Add("7:0\n")
	f.Add("ffffffff:1")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := parseDevice(s, 16); ok && (d.major >= 1<<12 || d.minor >= 1<<20) {
			t.Fatal(d)
		}
	})
}
