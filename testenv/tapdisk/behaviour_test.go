//go:build linux

package tapdisk_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/tapdisk"
)

// words reads a file of 64-bit numbers.
func words(t *testing.T, path string) (out []uint64) {
	t.Helper()
	b, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(len(b), 4096))
	for ; len(b) > 0; b = b[8:] {
		out = append(out, binary.LittleEndian.Uint64(b))
	}
	return out
}

func TestSharedMemory(t *testing.T) {
	root := t.TempDir()
	d := start(t, tapdisk.Options{Domid: 7, Devid: 51728, Minor: 3, Image: rawFile(t, 64<<20), ShmRoot: root})
	const reads, writes = 70, 30
	var all []tapdisk.Request
	all = append(all, load(t, d, tapdisk.Load{Requests: reads, Size: 8192, Reads: 1})...)
	all = append(all, load(t, d, tapdisk.Load{Requests: writes, Writes: 1})...)
	var took [2]uint64 // us, in the tapdisk
	for _, r := range all {
		took[r.Op] += uint64(r.Served() / time.Microsecond)
	}

	own := filepath.Join(root, fmt.Sprintf("td3-%d", d.PID()))
	for _, name := range []string{"vbd-7-51728", "vdi-3"} {
		w := words(t, filepath.Join(own, name))
		qt.Check(t, qt.DeepEquals(w[:5], []uint64{1, 0, reads, reads, 16 * reads}), qt.Commentf("%s", name))
		qt.Check(t, qt.DeepEquals(w[6:9], []uint64{writes, writes, 8 * writes}), qt.Commentf("%s", name))
		qt.Check(t, qt.DeepEquals(w[10:12], []uint64{0, 0}), qt.Commentf("%s", name))
		// From when it is taken until it is answered, less what is before and after.
		qt.Check(t, qt.IsTrue(w[5] <= took[0]+reads && w[9] <= took[1]+writes), qt.Commentf("%s: %v, %v", name, w[:12], took))
	}
	disk := filepath.Join(root, "vbd3-7-51728")
	w := words(t, filepath.Join(disk, "statistics"))
	qt.Check(t, qt.DeepEquals(w[:6], []uint64{0, 0, 0, reads, reads, 16 * reads}))
	qt.Check(t, qt.DeepEquals(w[8:11], []uint64{writes, writes, 8 * writes}))
	qt.Check(t, qt.Equals(w[13], 0))
	vbd := words(t, filepath.Join(own, "vbd-7-51728"))
	qt.Check(t, qt.Equals(w[6], vbd[5]))
	qt.Check(t, qt.Equals(w[11], vbd[9]))
	qt.Check(t, qt.IsTrue(w[7] <= w[6] && w[7]*reads >= w[6]), qt.Commentf("the most of %d us is %d us", w[6], w[7]))

	b, err := os.ReadFile(filepath.Join(disk, "io_ring"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(binary.LittleEndian.Uint64(b), uint64(crc32.ChecksumIEEE(b[8:]))))
	qt.Check(t, qt.IsTrue(regexp.MustCompile(`^nr_ents 32\nreq prod \d+ cons \d+ event \d+\nrsp prod \d+ pvt \d+ event \d+\n$`).Match(b[8:])), qt.Commentf("%q", b[8:]))

	qt.Assert(t, qt.IsNil(d.Close()))
	for _, dir := range []string{own, disk} {
		_, err := os.Stat(dir)
		qt.Check(t, qt.ErrorIs(err, fs.ErrNotExist))
	}
}

// TestRingText awaits that the text about the ring is refreshed, which is when there is
// something to do 5 s after the last time.
func TestRingText(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	load(t, d, tapdisk.Load{Time: 6500 * time.Millisecond, Rate: 20})
	b, err := os.ReadFile(filepath.Join(d.ShmRoot, "vbd3-1-51712/io_ring"))
	qt.Assert(t, qt.IsNil(err))
	m := regexp.MustCompile(`req prod (\d+) cons (\d+)`).FindSubmatch(b[8:])
	prod, err := strconv.Atoi(string(m[1]))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(prod > 0), qt.Commentf("%q", b[8:]))
	qt.Check(t, qt.Equals(binary.LittleEndian.Uint64(b), uint64(crc32.ChecksumIEEE(b[8:]))))
}

// ask sends a message to a control socket.
func ask(t *testing.T, d *tapdisk.Disk, kind uint16) []byte {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(d.ControlDir, fmt.Sprintf("ctl%d", d.PID())))
	qt.Assert(t, qt.IsNil(err))
	defer c.Close()
	b := make([]byte, 544)
	binary.LittleEndian.PutUint16(b, kind)
	binary.LittleEndian.PutUint16(b[2:], 3)
	_, err = c.Write(b)
	qt.Assert(t, qt.IsNil(err))
	var answer bytes.Buffer
	_, err = answer.ReadFrom(c)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(answer.Len(), 544))
	return answer.Bytes()
}

func TestControl(t *testing.T) {
	image := rawFile(t, 64<<20)
	d := start(t, tapdisk.Options{Minor: 3, Image: image})
	u32 := binary.LittleEndian.Uint32
	pid := ask(t, d, 3)
	qt.Check(t, qt.Equals(u32(pid), 3<<16|4))
	qt.Check(t, qt.Equals(u32(pid[4:]), uint32(d.PID())))
	list := ask(t, d, 19)
	qt.Check(t, qt.Equals(u32(list), 3<<16|20))
	qt.Check(t, qt.Equals(u32(list[8:]), 3))
	qt.Check(t, qt.Equals(u32(list[12:]), 0)) // state
	qt.Check(t, qt.Equals(strings.TrimRight(string(list[16:272]), "\x00"), "aio:"+image))
	for _, name := range []string{fmt.Sprintf("nbd%d.3", d.PID()), "tapdisk/tapdisk-3"} {
		_, err := os.Stat(filepath.Join(d.ControlDir, name))
		qt.Check(t, qt.IsNil(err))
	}
	qt.Assert(t, qt.IsNil(d.Pause()))
	qt.Check(t, qt.Equals(u32(ask(t, d, 19)[12:])&0x20, 0x20))
	qt.Assert(t, qt.IsNil(d.Resume()))
	qt.Check(t, qt.Equals(u32(ask(t, d, 19)[12:]), 0))
	qt.Check(t, qt.Equals(u32(ask(t, d, 99))&0xffff, 1))
}

// TestError has the guest be told of I/O that fails.
func TestError(t *testing.T) {
	d := start(t, tapdisk.Options{Domid: 7, Image: rawFile(t, 1<<20)})
	res, err := d.Guest().Run(t.Context(), tapdisk.Load{Requests: 20, Depth: 4, Begin: 1 << 20})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(res.Failed, 20))
	qt.Check(t, qt.Equals(res.Requests[0].Status, -1))
	w := words(t, filepath.Join(d.ShmRoot, fmt.Sprintf("td3-%d/vbd-7-51712", d.PID())))
	qt.Check(t, qt.Equals(w[10], 20))
	res, err = d.Guest().Run(t.Context(), tapdisk.Load{Requests: 20, Depth: 4, Span: 1 << 20})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(res.Failed, 0))
}

// TestPause has requests wait in the ring of a disk that is paused.
func TestPause(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	load(t, d, tapdisk.Load{Requests: 10})
	qt.Assert(t, qt.IsNil(d.Pause()))
	var steps []step
	got := make(chan []tapdisk.Request, 1)
	go func() {
		res, err := d.Guest().Run(t.Context(), tapdisk.Load{Requests: 10, Depth: 10})
		qt.Check(t, qt.IsNil(err))
		got <- res.Requests
	}()
	steps = traceSteps(t, d, func() {
		select {
		case <-got:
			t.Error("a request of a paused disk was answered")
		case <-time.After(50 * time.Millisecond):
		}
	})
	for _, s := range steps {
		qt.Check(t, qt.IsFalse(slices.Contains([]string{"kick", "copy", "submit", "notify"}, s.What)), qt.Commentf("%s", s.What))
	}
	qt.Assert(t, qt.IsNil(d.Resume()))
	qt.Check(t, qt.Equals(len(<-got), 10))
}

// TestBarrier has every barrier answered after all before it, and before what comes
// after it is taken.
func TestBarrier(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	all := load(t, d, tapdisk.Load{Requests: 1000, Depth: 32, Random: true, Reads: 1, Writes: 1, Barriers: 0.2})
	barriers := 0
	for i, b := range all {
		if b.Op != tapdisk.Barrier {
			continue
		}
		barriers++
		for k, r := range all {
			switch {
			case r.Enqueued < b.Enqueued && k > i:
				t.Fatalf("answered after a barrier that came later: %+v, %+v", r, b)
			case r.Enqueued > b.Enqueued && r.Taken < b.Answered:
				t.Fatalf("taken before a barrier was answered: %+v, %+v", r, b)
			}
		}
	}
	qt.Check(t, qt.IsTrue(barriers > 50))
}

// TestPolling has the event channel left alone while the tapdisk looks at the ring.
func TestPolling(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20), Polling: 10 * time.Second})
	load(t, d, tapdisk.Load{Requests: 5})
	steps := traceSteps(t, d, func() { load(t, d, tapdisk.Load{Requests: 100, Depth: 4}) })
	counts := map[string]int{}
	for _, s := range steps {
		counts[s.What]++
		if s.What == "select" {
			qt.Assert(t, qt.Equals(s.Timeout, 0))
			qt.Assert(t, qt.IsFalse(slices.Contains(s.Watched, "evtchn")))
		}
	}
	qt.Check(t, qt.Equals(counts["kick"], 0))
	qt.Check(t, qt.Equals(counts["unmask"], 0))
	qt.Check(t, qt.Equals(counts["copy"], 100))
}

// TestPollingEnds has it come to an end when there is nothing.
func TestPollingEnds(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20), Polling: time.Millisecond})
	steps := traceSteps(t, d, func() {
		for range 3 {
			load(t, d, tapdisk.Load{Requests: 5})
			time.Sleep(100 * time.Millisecond)
		}
	})
	check := map[string]int{}
	for _, s := range steps {
		if s.What == "select" && s.Timeout > 0 {
			check["sleep"]++
			qt.Assert(t, qt.IsTrue(slices.Contains(s.Watched, "evtchn")))
		}
		check[s.What]++
	}
	qt.Check(t, qt.IsTrue(check["sleep"] > 0 && check["kick"] >= 1), qt.Commentf("%v", check))
}

// TestOrphan has a tapdisk end with who started it.
func TestOrphan(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), orphanEnv+"="+rawFile(t, 64<<20), "TMPDIR="+t.TempDir()) // what it leaves behind
	out, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	cmd.Stderr = os.Stderr
	qt.Assert(t, qt.IsNil(cmd.Start()))
	var pid int
	_, err = fmt.Fscan(out, &pid)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(cmd.Process.Kill()))
	_ = cmd.Wait() // it says so
	for unix.Kill(pid, 0) == nil {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(b, []byte(") Z ")) {
			break // nobody takes its status
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSelect(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20), Select: true})
	steps := traceSteps(t, d, func() { load(t, d, tapdisk.Load{Requests: 50, Depth: 2}) })
	check(t, steps)
}

// TestAllocation has a VHD grow: the first write to a block comes with a bitmap of
// zeroes, then the table and the bits are written.
func TestAllocation(t *testing.T) {
	name := filepath.Join(t.TempDir(), "leaf")
	qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(name, tapdisk.Content{Size: 64 << 20})))
	d := start(t, tapdisk.Options{Type: tapdisk.VHD, Image: name})
	steps := traceSteps(t, d, func() { load(t, d, tapdisk.Load{Requests: 1, Writes: 1, Begin: 2<<20 + 8192, Span: 4096}) })
	var calls [][]iocb
	for _, s := range steps {
		if s.What == "submit" {
			for i := range s.Iocbs {
				s.Iocbs[i].Buf = 0
			}
			calls = append(calls, s.Iocbs)
		}
	}
	w := func(bytes, offset int64) iocb {
		return iocb{Op: "PWRITE", Bytes: bytes, Vectors: 1, Offset: offset, Data: true, Resfd: "eventfd"}
	}
	const table, bitmap = 1536, 4096 - 512 // the table takes a sector, then the data begin on a page
	var flat []iocb
	for _, c := range calls {
		flat = append(flat, c...)
	}
	qt.Assert(t, qt.Equals(len(flat), 4), qt.Commentf("%+v", calls))
	qt.Check(t, qt.DeepEquals(calls[0], []iocb{w(bitmap+512-(table+512), table+512), w(4096, 4096+8192)}))
	for _, want := range []iocb{w(512, table), w(512, bitmap)} {
		qt.Check(t, qt.SliceContains(flat[2:], want))
	}
	// The second one finds the block there.
	steps = traceSteps(t, d, func() { load(t, d, tapdisk.Load{Requests: 1, Writes: 1, Begin: 2<<20 + 8192, Span: 4096}) })
	n := 0
	for _, s := range steps {
		n += len(s.Iocbs)
	}
	qt.Check(t, qt.Equals(n, 1))
	// And an image that is opened anew.
	qt.Assert(t, qt.IsNil(d.Close()))
	d = start(t, tapdisk.Options{Type: tapdisk.VHD, Image: name})
	all := load(t, d, tapdisk.Load{Requests: 2, Begin: 2<<20 + 8192, Span: 4096})
	qt.Check(t, qt.Equals(all[0].Metadata, 1))
	qt.Check(t, qt.Equals(all[0].IOs, 1))
	qt.Check(t, qt.Equals(all[1].Metadata, 0))
}

// TestChain has what the leaf lacks come from further up, with a bitmap to be read on
// each level.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	o := tapdisk.Options{Type: tapdisk.VHD, Image: filepath.Join(dir, "leaf")}
	qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(o.Image, tapdisk.Content{Size: 64 << 20, Blocks: 1, Child: true})))
	for i, c := range []tapdisk.Content{{Blocks: 1, Child: true}, {Blocks: 1, Sectors: 1}} {
		parent := filepath.Join(dir, fmt.Sprintf("parent%d", i))
		c.Size = 64 << 20
		qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(parent, c)))
		o.Chain = append(o.Chain, parent)
	}
	d := start(t, o)
	all := load(t, d, tapdisk.Load{Requests: 2, Span: 4096})
	qt.Check(t, qt.Equals(all[0].Metadata, 3))
	qt.Check(t, qt.Equals(all[1].Metadata, 0))
	qt.Check(t, qt.Equals(all[0].IOs, 1))
	qt.Assert(t, qt.IsNil(d.Inject(tapdisk.Metadata, 1)))
	for _, r := range load(t, d, tapdisk.Load{Requests: 10, Depth: 2, Random: true, Span: 64 << 20}) {
		qt.Check(t, qt.Equals(r.Metadata, 3))
	}
}
