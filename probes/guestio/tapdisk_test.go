//go:build linux

package guestio

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

const (
	vmUUID  = "1f1c5c0a-0000-4000-8000-000000000005"
	srUUID  = "5f2a5c0a-0000-4000-8000-00000000000a"
	vdiUUID = "7d7d5c0a-0000-4000-8000-0000000000d1"
	oldUUID = "7d7d5c0a-0000-4000-8000-0000000000d0"
)

// counters are those of a tapdisk's ring, as its file has them.
type counters struct{ reads, readsDone, readTime, writes, writesDone uint64 }

func (c counters) file() string {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b, 1)
	for at, n := range map[int]uint64{16: c.reads, 24: c.readsDone, 32: 8 * c.readsDone, 40: c.readTime, 48: c.writes, 56: c.writesDone, 64: 8 * c.writesDone} {
		binary.LittleEndian.PutUint64(b[at:], n)
	}
	return string(b)
}

// tapdisk makes a tapdisk that serves a disk, with its image open.
func (l *lab) tapdisk(pid, domid, devid int, c counters) {
	l.t.Helper()
	l.process(pid, "tapdisk", "tapdisk")
	l.write(l.of(pid, "vdi-3"), c.file())
	l.write(l.of(pid, fmt.Sprintf("vbd-%d-%d", domid, devid)), c.file())
	l.sched(pid, pid, 1e9, 2e9)
}

// of returns the path of a file that a tapdisk has in shared memory.
func (l *lab) of(pid int, name string) string {
	return filepath.Join(l.shm, fmt.Sprintf("td3-%d", pid), name)
}

// ends takes away a process and what it has in shared memory.
func (l *lab) ends(pid int) {
	l.t.Helper()
	qt.Assert(l.t, qt.IsNil(os.RemoveAll(filepath.Join(l.proc, fmt.Sprint(pid)))))
	qt.Assert(l.t, qt.IsNil(os.RemoveAll(l.of(pid, ""))))
}

// opens gives a process an open file.
func (l *lab) opens(pid, fd int, path string, flags int) {
	l.t.Helper()
	at := filepath.Join(l.proc, fmt.Sprint(pid))
	link := filepath.Join(at, "fd", fmt.Sprint(fd))
	os.Remove(link)
	qt.Assert(l.t, qt.IsNil(os.Symlink(path, link)))
	l.write(filepath.Join(at, "fdinfo", fmt.Sprint(fd)), fmt.Sprintf("pos:\t0\nflags:\t%o\nmnt_id:\t20\n", flags))
}

func (l *lab) sched(pid, tid int, running, runq uint64) {
	l.t.Helper()
	l.write(filepath.Join(l.proc, fmt.Sprint(pid), "task", fmt.Sprint(tid), "schedstat"), fmt.Sprintf("%d %d 5\n", running, runq))
}

// ring writes a ring down.
func (l *lab) ring(domid, devid int, prod, cons, rsp uint32) {
	l.t.Helper()
	text := fmt.Sprintf("nr_ents 32\nreq prod %d cons %d event 1\nrsp prod %d pvt %d event 1\n", prod, cons, rsp, rsp)
	sum := binary.LittleEndian.AppendUint64(nil, uint64(crc32.ChecksumIEEE([]byte(text))))
	l.write(filepath.Join(l.shm, fmt.Sprintf("vbd3-%d-%d", domid, devid), "io_ring"), string(sum)+text)
}

// repository makes files of an SR that is mounted and returns its directory; on says
// what the kernel takes it to be.
func (l *lab) repository(fstype, source, options string) (dir string, on device) {
	l.t.Helper()
	dir = filepath.Join(l.t.TempDir(), "sr-mount", srUUID)
	qt.Assert(l.t, qt.IsNil(os.MkdirAll(dir, 0o755)))
	var st unix.Stat_t
	qt.Assert(l.t, qt.IsNil(unix.Stat(dir, &st)))
	on = deviceOf(st.Dev)
	l.write(filepath.Join(l.proc, "1", "mountinfo"), fmt.Sprintf("30 21 %s / /run/sr-mount/%s rw - %s %s %s\n", on, srUUID, fstype, source, options))
	return dir, on
}

// figuresRead returns when that was last.
func (l *lab) figuresRead() time.Time {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	return l.p.figures.when
}

func (l *lab) until(what string, f func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		qt.Assert(l.t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("not in a minute: %s", what))
	}
}

// Files of a server that may not answer are not looked at: these are not even there.
func TestSilentServer(t *testing.T) {
	l := newLab(t)
	at := "/run/sr-mount/" + srUUID + "/"
	l.write(filepath.Join(l.proc, "1", "mountinfo"), "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 0:45 / /run/sr-mount/"+srUUID+" rw - nfs 10.0.0.7:/x rw,addr=10.0.0.7\n")
	l.tapdisk(77, 5, 51712, counters{})
	l.opens(77, 9, at+vdiUUID+".vhd", unix.O_RDWR|unix.O_DIRECT)
	l.guest(5, "web", vmUUID)
	l.vbd(Tapdisk, 5, 51712, "xvda", nil)
	l.vbd(Qdisk, 5, 51728, "xvdb", map[string]string{"params": "aio:/var" + at + oldUUID})
	s := l.watch().Sample()
	qt.Assert(t, qt.HasLen(s.VBDs, 2))
	v := s.VBDs[0]
	qt.Check(t, qt.DeepEquals(v.Images, []string{at + vdiUUID + ".vhd"}))
	qt.Check(t, qt.Equals(v.Server, "10.0.0.7:/x"))
	qt.Check(t, qt.Equals(v.SRType, "nfs"))
	qt.Check(t, qt.Equals(v.Why, "tapdisk 77 has its images on no block device"))
	qt.Check(t, qt.Equals(s.VBDs[1].Why, "/var"+at+oldUUID+" is on a file system without a block device"))
}

// A disk on NFS: who is who, without anything but names, paths and figures.
func TestWhose(t *testing.T) {
	l := newLab(t)
	dir, _ := l.repository("nfs", "10.0.0.7:/export/"+srUUID, "rw,addr=10.0.0.7")
	for _, name := range []string{vdiUUID, oldUUID} {
		l.write(filepath.Join(dir, name+".vhd"), "")
	}
	l.write(filepath.Join(t.TempDir(), "log"), "")
	l.tapdisk(77, 5, 268439552, counters{})
	l.opens(77, 9, filepath.Join(dir, oldUUID+".vhd"), unix.O_RDONLY)
	l.opens(77, 12, filepath.Join(dir, vdiUUID+".vhd"), unix.O_RDWR|unix.O_DIRECT)
	l.opens(77, 13, l.of(77, "vdi-3"), unix.O_RDWR)
	l.guest(5, "web", vmUUID)
	l.vbd(Tapdisk, 5, 268439552, "", map[string]string{
		"sm-data/vdi-uuid": vdiUUID, "sm-data/storage-type": "nfs", "vdi": `["VDI","` + srUUID + `/` + vdiUUID + `"]`,
	})
	w := l.watch()
	s := w.Sample()
	qt.Assert(t, qt.HasLen(s.VBDs, 1))
	v := s.VBDs[0]
	qt.Check(t, qt.Equals(v.Device, "xvdq"))
	qt.Check(t, qt.Equals(v.VDI, vdiUUID))
	qt.Check(t, qt.Equals(v.SR, srUUID))
	qt.Check(t, qt.Equals(v.Server, "10.0.0.7:/export/"+srUUID))
	disk := l.p.DiskOf(77)
	qt.Assert(t, qt.IsNotNil(disk))
	qt.Check(t, qt.Equals(disk.Domid, 5))
	qt.Check(t, qt.Equals(disk.VM, vmUUID))
	qt.Check(t, qt.Equals(disk.Name, "web"))
	qt.Check(t, qt.Equals(disk.SRType, "nfs"))
	qt.Check(t, qt.Equals(disk.Type, "vhd"))
	qt.Check(t, qt.HasLen(disk.Images, 2))
	qt.Check(t, qt.IsTrue(strings.HasSuffix(disk.Images[0], vdiUUID+".vhd"))) // the leaf, though it was opened later
	qt.Check(t, qt.IsNil(l.p.DiskOf(78)))
	qt.Check(t, qt.DeepEquals(s.SRs, []SR{{UUID: srUUID, Type: "nfs", Server: disk.Server, Disks: 1}}))

	// Nothing new: it is the same.
	l.vbd(Tapdisk, 5, 51712, "xvda", nil)
	until(t, w, "the other disk is seen", func(s *Sample) bool { return len(s.VBDs) == 2 })
	qt.Check(t, qt.IsTrue(l.p.DiskOf(77) == disk))
	w.Close()
	qt.Check(t, qt.IsNil(l.p.DiskOf(77)))
	qt.Check(t, qt.HasLen(l.k.wrong, 0))
}

// What comes and goes is followed by what tapdisks do in shared memory, not only by
// looking now and then.
func TestTapdiskChanges(t *testing.T) {
	l := newLab(t)
	dir, on := l.repository("ext4", "/dev/sdb1", "rw")
	leaf, old := filepath.Join(dir, vdiUUID+".vhd"), filepath.Join(dir, oldUUID+".vhd")
	l.write(leaf, "")
	l.write(old, "")
	l.guest(5, "web", vmUUID)
	l.vbd(Tapdisk, 5, 51728, "xvdb", nil)
	w := l.watch()
	qt.Check(t, qt.Equals(w.Sample().VBDs[0].Why, "its backend has no tapdisk yet (kthread-pid)"))

	// It begins: xenstore does not name it.
	l.process(77, "tapdisk", "tapdisk")
	l.opens(77, 9, old, unix.O_RDWR)
	l.tapdisk(77, 5, 51728, counters{})
	l.until("the tapdisk is known", func() bool { return l.p.DiskOf(77) != nil })
	first := l.p.DiskOf(77)
	qt.Check(t, qt.DeepEquals(first.Images, []string{old}))
	_, added := l.k.tap(77)
	qt.Check(t, qt.IsTrue(added))
	if on.major != 0 {
		qt.Check(t, qt.DeepEquals(l.k.sources(), [][]bpf.DiskSource{{{TGID: 77, Dev: on.number(), Whole: on.number()}}}))
		qt.Check(t, qt.Equals(first.SRType, "ext"))
	}

	// A snapshot: paused, its image closed; then another leaf.
	time.Sleep(2 * settle) // inotify is there now
	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Join(l.proc, "77", "fd", "9"))))
	qt.Assert(t, qt.IsNil(os.Remove(l.of(77, "vdi-3"))))
	s := until(t, w, "it is paused", func(s *Sample) bool { return s.VBDs[0].Tapdisk.Paused })
	qt.Check(t, qt.Equals(s.VBDs[0].Tapdisk.Pauses, 1))
	qt.Check(t, qt.IsTrue(l.p.DiskOf(77) == first)) // what was known of it stays so
	s = until(t, w, "the pause goes on", func(s *Sample) bool { return s.VBDs[0].Tapdisk.PausedSeconds > 0 })
	qt.Check(t, qt.StringContains(s.VBDs[0].Why, "is paused"))
	l.opens(77, 9, leaf, unix.O_RDWR)
	l.opens(77, 10, old, unix.O_RDONLY)
	l.write(l.of(77, "vdi-3"), counters{}.file())
	l.until("the new chain is known", func() bool { return slices.Equal(l.p.DiskOf(77).Images, []string{leaf, old}) })
	s = w.Sample()
	qt.Check(t, qt.IsFalse(s.VBDs[0].Tapdisk.Paused))
	qt.Check(t, qt.DeepEquals(first.Images, []string{old})) // who has it may go on to read it

	// Another process with its number, that is no tapdisk: what is left says nothing.
	since := s.VBDs[0].Layers.Since
	l.process(77, "sh", "sh")
	l.vbd(Tapdisk, 5, 51728, "xvdb", map[string]string{"kthread-pid": "77"})
	l.until("it is forgotten", func() bool { return l.p.DiskOf(77) == nil })
	_, added = l.k.tap(77)
	qt.Check(t, qt.IsFalse(added))
	qt.Check(t, qt.Equals(w.Sample().VBDs[0].Why, "its tapdisk is no more"))

	// One that is a tapdisk and began later is counted anew.
	l.ends(77)
	l.process(77, "tapdisk", "tapdisk")
	l.started(77, "tapdisk", 2000)
	l.tapdisk(77, 5, 51728, counters{})
	l.started(77, "tapdisk", 2000)
	l.opens(77, 9, leaf, unix.O_RDWR)
	s = until(t, w, "the new one is counted", func(s *Sample) bool { return s.VBDs[0].Layers != nil && len(s.VBDs[0].Images) == 1 })
	qt.Check(t, qt.IsTrue(s.VBDs[0].Layers.Since.After(since)))

	// Another takes over, and the guest goes.
	l.tapdisk(78, 5, 51728, counters{})
	l.started(78, "tapdisk", 3000)
	l.vbd(Tapdisk, 5, 51728, "xvdb", map[string]string{"kthread-pid": "78"})
	l.until("the other serves", func() bool { return l.p.DiskOf(78) != nil && l.p.DiskOf(77) == nil })
	l.store.Remove(backends + "/vbd3/5")
	l.until("it has gone", func() bool { return l.p.DiskOf(78) == nil })
	w.Close()
	qt.Check(t, qt.HasLen(l.k.wrong, 0))
	qt.Check(t, qt.HasLen(l.k.taps, 0))
}

// Two disks that one tapdisk serves, and more tapdisks than there is room for.
func TestTapdiskTable(t *testing.T) {
	l := newLab(t)
	l.k.maxTaps = 1
	l.tapdisk(77, 5, 51712, counters{})
	l.write(l.of(77, "vbd-5-51728"), counters{}.file())
	l.tapdisk(78, 6, 51712, counters{})
	for _, d := range [][2]int{{5, 51712}, {5, 51728}, {6, 51712}} {
		l.vbd(Tapdisk, d[0], d[1], "", nil)
	}
	w := l.watch()
	s := w.Sample()
	qt.Check(t, qt.IsNotNil(s.VBDs[0].Layers))
	qt.Check(t, qt.Equals(s.VBDs[1].Why, "counted with xvda: tapdisk 77 serves both"))
	qt.Check(t, qt.ErrorIs(fmt.Errorf("%w: of the fake", bpf.ErrDisks), bpf.ErrDisks))
	qt.Check(t, qt.Equals(s.VBDs[2].LayersWhy, "table of disks full: of the fake"))
	l.ends(77)
	l.store.Remove(backends + "/vbd3/5")
	until(t, w, "there is room for the other", func(s *Sample) bool { return len(s.VBDs) == 1 && s.VBDs[0].Layers != nil })
}

// The kernel refuses: what needs no eBPF is there.
func TestWithoutEBPF(t *testing.T) {
	for _, c := range []struct {
		name    string
		refuse  []bpf.Probe
		kernel  bool
		trouble string
	}{
		{"no kernel", nil, false, "no block I/O and no layers: eBPF is not used"},
		{"no disk", []bpf.Probe{bpf.Disk, bpf.Tapdisk}, true, "no block I/O and no layers: operation not permitted"},
		{"no tapdisk", []bpf.Probe{bpf.Tapdisk}, true, "no layers: operation not permitted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			for _, p := range c.refuse {
				l.k.refuse[p] = unix.EPERM
			}
			if !c.kernel {
				l.p.o.Kernel = nil
			}
			l.guest(5, "web", vmUUID)
			l.vbd(Tapdisk, 5, 51712, "xvda", map[string]string{"kthread-pid": "77"})
			l.tapdisk(77, 5, 51712, counters{reads: 10, readsDone: 10, readTime: 1000})
			l.ring(5, 51712, 10, 10, 10)
			w := l.watch()
			s := w.Sample()
			qt.Check(t, qt.Equals(s.Trouble, c.trouble))
			qt.Check(t, qt.Equals(s.VBDs[0].Tapdisk.Read.Total, 10))
			qt.Check(t, qt.IsNotNil(s.VBDs[0].Ring))
			qt.Check(t, qt.IsNil(s.VBDs[0].Layers))
			qt.Check(t, qt.IsTrue(s.VBDs[0].LayersWhy != ""))
			qt.Check(t, qt.IsNotNil(l.p.DiskOf(77)))
			_, err := l.p.Follow(t.Context(), Want{Sample: 1})
			qt.Check(t, qt.ErrorMatches(err, "requests of guests are not seen: .*"))
			// It does later.
			if c.kernel {
				clear(l.k.refuse)
				leave, err := l.p.Follow(t.Context(), Want{Sample: 1})
				qt.Assert(t, qt.IsNil(err))
				until(t, w, "layers are counted", func(s *Sample) bool { return s.Trouble == "" && s.VBDs[0].Layers != nil })
				leave()
			}
			w.Close()
			qt.Check(t, qt.HasLen(l.k.wrong, 0))
			qt.Check(t, qt.IsFalse(l.k.attached || l.k.layers))
		})
	}
}

// Figures of two readings.
func TestFigures(t *testing.T) {
	l := newLab(t)
	l.repository("nfs", "10.0.0.7:/export/"+srUUID, "rw,addr=10.0.0.7")
	l.guest(5, "web", vmUUID)
	l.store.Set("/local/domain/5/qemu-pid", "90")
	l.process(90, "qemu-system-i38", "qemu")
	l.sched(90, 90, 1e9, 0)
	l.vbd(Tapdisk, 5, 51712, "xvda", map[string]string{"kthread-pid": "77", "polling-duration": "8000", "polling-idle-threshold": "50"})
	l.write(filepath.Join(l.shm, "cpu_util_monitor"), string(binary.LittleEndian.AppendUint32(make([]byte, 4), math.Float32bits(40))))
	l.tapdisk(77, 5, 51712, counters{reads: 10, readsDone: 10, readTime: 1000})
	l.write(l.of(77, "nbd-3"), counters{readsDone: 5}.file())
	l.ring(5, 51712, 100, 100, 100)
	w := l.watch()
	qt.Check(t, qt.IsFalse(w.Sample().VBDs[0].Tapdisk.Polling))
	l.write(filepath.Join(l.shm, "cpu_util_monitor"), string(binary.LittleEndian.AppendUint32(make([]byte, 4), math.Float32bits(62.5))))
	l.write(l.of(77, "vbd-5-51712"), counters{reads: 40, readsDone: 30, readTime: 5000, writes: 2, writesDone: 2}.file())
	l.write(l.of(77, "nbd-3"), counters{readsDone: 8}.file())
	l.ring(5, 51712, 132, 108, 100)
	l.sched(77, 77, 2e9, 2e9+5e8)
	l.sched(77, 79, 7e8, 0) // a thread that was not there
	l.sched(90, 90, 3e9, 0)
	l.cpu(2000, 1500, 100)
	before := l.figuresRead()
	l.until("the figures are read again", func() bool { return l.figuresRead().After(before) })
	s := w.Sample()
	v := s.VBDs[0]
	p := v.Tapdisk
	qt.Check(t, qt.Equals(p.Read, Processed{Total: 30, Done: 20, Bytes: 20 * 4096, MeanUs: 200}))
	qt.Check(t, qt.Equals(p.Write, Processed{Total: 2, Done: 2, Bytes: 2 * 4096}))
	qt.Check(t, qt.Equals(p.InFlight, 10))
	qt.Check(t, qt.Equals(p.MeanInFlight, 10))
	qt.Check(t, qt.Equals(p.Aside, 3))
	near := func(got, want float64) {
		t.Helper()
		qt.Check(t, qt.IsTrue(got > want*0.999 && got < want*1.001), qt.Commentf("%g for %g", got, want))
	}
	near(p.CPU*p.Seconds, 1.7)
	near(p.RunQueue*p.Seconds, 0.5)
	near(v.QEMU.CPU*p.Seconds, 2)
	qt.Check(t, qt.Equals(*v.Ring, Ring{Size: 32, Occupied: 32, Waiting: 24, Full: 1, Samples: 1}))
	near(s.Host.Idle, 0.6)
	near(s.Host.Steal, 0.1)
	qt.Check(t, qt.Equals(s.Host.CPUs, 2))
	qt.Check(t, qt.Equals(*s.Host.Cpumond, 0.625))
	qt.Check(t, qt.IsTrue(p.Polling))
	w.Close()
}

// What is wanted of requests, by several, and what is usual of a disk.
func TestFollow(t *testing.T) {
	l := newLab(t)
	l.vbd(Tapdisk, 5, 51712, "xvda", map[string]string{"kthread-pid": "77"})
	l.tapdisk(77, 5, 51712, counters{})
	conf := func() bpf.TapdiskConfig {
		t.Helper()
		c, ok := l.k.tap(77)
		qt.Assert(t, qt.IsTrue(ok))
		return c
	}
	ms := uint64(time.Millisecond)
	_, err := l.p.Follow(t.Context(), Want{Factor: -1})
	qt.Check(t, qt.IsNotNil(err))
	fixed, err := l.p.Follow(t.Context(), Want{Slow: [2]time.Duration{20 * time.Millisecond, 0}, Sample: 1000})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(conf(), bpf.TapdiskConfig{SlowNs: [2]uint64{20 * ms}, Sample: 1000, NoDevice: true}))
	factor, err := l.p.Follow(t.Context(), Want{Slow: [2]time.Duration{30 * time.Millisecond, 30 * time.Millisecond}, Factor: 4, Sample: 50})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(conf(), bpf.TapdiskConfig{SlowNs: [2]uint64{20 * ms, 30 * ms}, Sample: 50, NoDevice: true}))

	// Periods in which reads take 2 ms and writes nearly nothing.
	now := time.Now()
	tell := func(n int, read, write time.Duration) {
		l.k.mu.Lock()
		s := l.k.counts[77]
		for op, d := range []time.Duration{read, write} {
			h := &s.Requests[op].Layers[event.LayerTotal]
			h.Count += uint64(n)
			h.MaxNs = max(h.MaxNs, uint64(d))
			for i := range h.Bucket {
				if _, to := bpf.DiskBucket(i); to > d {
					h.Bucket[i] += uint32(n)
					break
				}
			}
		}
		l.k.counts[77] = s
		l.k.mu.Unlock()
		now = now.Add(learnEvery * again)
		l.p.learn(now)
	}
	tell(99, 2*time.Millisecond, 10*time.Microsecond) // too few
	for range usualFrom - 1 {
		qt.Check(t, qt.Equals(l.p.Usual(77, false), 0))
		tell(100, 2*time.Millisecond, 10*time.Microsecond)
	}
	qt.Check(t, qt.Equals(l.p.Usual(77, false), 0))
	tell(100, 2*time.Millisecond, 10*time.Microsecond)
	near := func(got int64, want time.Duration) {
		t.Helper()
		qt.Check(t, qt.IsTrue(float64(got) > 0.93*float64(want) && float64(got) < 1.07*float64(want)), qt.Commentf("%d for %s", got, want))
	}
	near(l.p.Usual(77, false), 2*time.Millisecond)
	near(l.p.Usual(77, true), 10*time.Microsecond)
	near(int64(conf().SlowNs[0]), 8*time.Millisecond)
	qt.Check(t, qt.Equals(conf().SlowNs[1], ms)) // the floor
	// One bad period, with however many requests, changes nothing; half of them do.
	tell(1e6, time.Second, time.Second)
	near(int64(conf().SlowNs[0]), 8*time.Millisecond)
	for range usualFrom {
		tell(100, time.Second, time.Second)
	}
	near(l.p.Usual(77, false), time.Second)

	factor()
	factor()
	qt.Check(t, qt.Equals(conf(), bpf.TapdiskConfig{SlowNs: [2]uint64{20 * ms}, Sample: 1000, NoDevice: true}))
	fixed()
	_, there := l.k.tap(77)
	qt.Check(t, qt.IsFalse(there))
	qt.Check(t, qt.HasLen(l.k.wrong, 0))
}

func TestLayers(t *testing.T) {
	l := newLab(t)
	l.vbd(Tapdisk, 5, 51712, "xvda", map[string]string{"kthread-pid": "77"})
	l.tapdisk(77, 5, 51712, counters{})
	w := l.watch()
	count := func(n uint64, d time.Duration) {
		l.k.mu.Lock()
		defer l.k.mu.Unlock()
		s := l.k.counts[77]
		s.Requests[bpf.GuestWrite].Bytes += 4096 * n
		for _, h := range []*bpf.Hist{&s.Requests[bpf.GuestWrite].Layers[event.LayerTotal], &s.Requests[bpf.GuestWrite].Layers[event.LayerDevice], &s.OwnIO} {
			h.Count += n
			h.SumNs += n * uint64(d)
			h.MaxNs = max(h.MaxNs, uint64(d))
			for i := range h.Bucket {
				if _, to := bpf.DiskBucket(i); to > d {
					h.Bucket[i] += uint32(n)
					break
				}
			}
		}
		l.k.counts[77] = s
	}
	count(10, 50*time.Millisecond)
	w.Sample()
	count(99, time.Millisecond)
	v := w.Sample().VBDs[0]
	write := v.Layers.Write
	qt.Check(t, qt.Equals(write.Total.Requests, 109))
	qt.Check(t, qt.Equals(write.Interval.Bytes, 99*4096))
	device := write.Interval.Layers["device"]
	qt.Check(t, qt.Equals(device.Count, 99))
	qt.Check(t, qt.Equals(device.Mean, 1000))
	qt.Check(t, qt.IsTrue(device.Max >= 1000 && device.Max < 1100), qt.Commentf("%+v", device)) // not what was before
	qt.Check(t, qt.Equals(write.Total.Layers["device"].Max, 50000))
	qt.Check(t, qt.Equals(v.OwnIO.Interval.Count, 99))
	qt.Check(t, qt.HasLen(v.Layers.Read.Total.Layers, 0))
	qt.Check(t, qt.Equals(v.Counted.Requests[bpf.GuestWrite].Layers[event.LayerTotal].Count, 99))
	v = w.Sample().VBDs[0]
	qt.Check(t, qt.Equals(v.Layers.Write.Interval.Requests, 0))
	w.Close()
}
