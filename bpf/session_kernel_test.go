//go:build linux

package bpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// openKernel opens the kernel in a tier, or skips and says why it cannot.
func openKernel(t testing.TB, tier Tier, o Options) *Kernel {
	t.Helper()
	o.Legacy = tier == Legacy
	k, err := Open(o)
	if errors.Is(err, ErrKernel) {
		t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	qt.Assert(t, qt.IsNil(err))
	if k.Tier() != tier {
		t.Skipf("needs the %s tier (ring buffer and BTF); this kernel has the %s tier", tier, k.Tier())
	}
	return k
}

// sessions are the sessions that inTiers shares, since detaching takes seconds.
var sessions = map[Tier]*collector{}

func closeSessions() {
	for _, c := range sessions {
		c.close()
	}
}

// collectorOf returns the shared session of a tier, with everything attached but what
// is loaded late.
func collectorOf(t testing.TB, tier Tier) *collector {
	t.Helper()
	if c := sessions[tier]; c != nil {
		return c
	}
	c := newCollector(t, openKernel(t, tier, Options{}))
	sessions[tier] = c
	for _, p := range allProbes {
		if !loadedLate(p) {
			qt.Assert(t, qt.IsNil(c.s.Attach(p)))
		}
	}
	return c
}

// inTiers runs a test in both tiers with everything attached.
func inTiers(t *testing.T, f func(t *testing.T, c *collector)) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := collectorOf(t, tier)
			c.reset(t)
			f(t, c)
		})
	}
}

// reset forgets what earlier tests left.
func (c *collector) reset(t testing.TB) {
	targets, err := c.s.Targets()
	qt.Assert(t, qt.IsNil(err))
	for tgid := range targets {
		qt.Assert(t, qt.IsNil(c.s.DeleteTarget(tgid)))
	}
	c.t = t
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got, c.lost, c.before = nil, 0, c.s.Losses()
}

// losses returns what was lost since reset. Programs skipped by the kernel may have
// been so for anyone, and are not among it.
func (c *collector) losses() []Loss {
	var out []Loss
	for _, l := range c.s.Losses() {
		if l.Cause == lossNames[lossSkipped] {
			continue
		}
		for _, b := range c.before {
			if b.Probe == l.Probe && b.Cause == l.Cause {
				l.Count -= b.Count
			}
		}
		if l.Count > 0 {
			out = append(out, l)
		}
	}
	return out
}

// got is a decoded record of any kind.
type got struct {
	Hdr
	Data    DataRec
	Log     LogRec
	Open    OpenRec
	Close   CloseRec
	Fork    ForkRec
	Exec    ExecRec
	Exit    ExitRec
	Request RequestRec
	Time    TimeRec
	Head    string
	Tail    string
}

func (g got) String() string {
	s := fmt.Sprintf("kind %d flags %#x tid %d", g.Kind, g.Flags, g.TID)
	switch g.Kind {
	case KindData:
		s += fmt.Sprintf(" fd %d dir %d calls %d bytes %d head %.60q tail %d", g.Data.FD, g.Data.Dir, g.Data.Calls, g.Data.Bytes, g.Head, len(g.Tail))
	case KindLog:
		s += fmt.Sprintf(" log %.60q", g.Head)
	case KindOpen:
		s += fmt.Sprintf(" fd %d how %d", g.Open.FD, g.Open.How)
	case KindClose:
		s += fmt.Sprintf(" fd %d in %d out %d", g.Close.FD, g.Close.BytesIn, g.Close.BytesOut)
	case KindExec:
		s += " " + cstring(g.Exec.Filename[:])
	}
	return s
}

func cstring(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// decodeRecord reads a record by the mirror structs.
func decodeRecord(raw []byte) (g got, err error) {
	rest := func(v any) ([]byte, error) {
		_, err := binary.Decode(raw, binary.LittleEndian, v)
		return raw[binary.Size(v):], err
	}
	if _, err := rest(&g.Hdr); err != nil {
		return g, err
	}
	switch g.Kind {
	case KindData:
		b, err := rest(&g.Data)
		if err != nil || len(b) != int(g.Data.HeadLen)+int(g.Data.TailLen) {
			return g, fmt.Errorf("data: %d bytes, head %d, tail %d: %v", len(b), g.Data.HeadLen, g.Data.TailLen, err)
		}
		g.Head, g.Tail = string(b[:g.Data.HeadLen]), string(b[g.Data.HeadLen:])
	case KindLog:
		b, err := rest(&g.Log)
		if err != nil || len(b) != int(g.Log.HeadLen) {
			return g, fmt.Errorf("log: %v", err)
		}
		g.Head = string(b)
	case KindOpen:
		_, err = rest(&g.Open)
	case KindClose:
		_, err = rest(&g.Close)
	case KindFork:
		_, err = rest(&g.Fork)
	case KindExec:
		_, err = rest(&g.Exec)
	case KindExit:
		_, err = rest(&g.Exit)
	case KindTime:
		_, err = rest(&g.Time)
	case KindRequest:
		_, err = rest(&g.Request)
	default:
		err = fmt.Errorf("kind %d", g.Kind)
	}
	if err == nil && g.Version != WireVersion {
		err = fmt.Errorf("version %d", g.Version)
	}
	return g, err
}

// collector reads all records of a session.
type collector struct {
	t      testing.TB
	s      *Session
	before []Loss

	mu   sync.Mutex
	got  []got
	lost uint64
	errs []error
	done chan struct{}
}

func newCollector(t testing.TB, k *Kernel) *collector {
	t.Helper()
	s, err := k.Load()
	qt.Assert(t, qt.IsNil(err))
	c := &collector{t: t, s: s, done: make(chan struct{})}
	go c.run()
	return c
}

func (c *collector) close() error {
	err := c.s.Close()
	<-c.done
	return err
}

// collect is newCollector for one test only.
func collect(t testing.TB, k *Kernel) *collector {
	t.Helper()
	c := newCollector(t, k)
	t.Cleanup(func() { qt.Check(t, qt.IsNil(c.close())) })
	return c
}

func (c *collector) run() {
	defer close(c.done)
	var r Record
	for {
		err := c.s.Read(&r)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			c.mu.Lock()
			c.errs = append(c.errs, err)
			c.mu.Unlock()
			return
		}
		g, err := decodeRecord(r.Raw)
		c.mu.Lock()
		if err != nil {
			c.errs = append(c.errs, err)
		}
		c.got = append(c.got, g)
		c.lost += r.Lost
		c.mu.Unlock()
	}
}

// settle waits until no more records come. The flush makes sure that the reader
// has had its turn, however slow the machine is.
func (c *collector) settle() {
	for n := -1; ; {
		time.Sleep(2 * pollEvery)
		before := c.s.flushed.Load()
		qt.Assert(c.t, qt.IsNil(c.s.buffer.flush()))
		for deadline := time.Now().Add(20 * time.Second); c.s.flushed.Load() == before; {
			qt.Assert(c.t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("nobody reads"))
			time.Sleep(time.Millisecond)
		}
		c.mu.Lock()
		now := len(c.got)
		c.mu.Unlock()
		if now == n {
			return
		}
		n = now
	}
}

// await waits for a record of that kind: of a call that was only started.
func (c *collector) await(k Kind) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		n := len(ofKind(c.got, k))
		c.mu.Unlock()
		if n > 0 {
			return
		}
		qt.Assert(c.t, qt.IsTrue(time.Now().Before(deadline)), qt.Commentf("no record of kind %d", k))
	}
}

// take returns the records that came since the last take, of one process and of
// the given kinds, once no more come. There have to be none of others.
func (c *collector) take(tgid uint32, kinds ...Kind) []got {
	c.t.Helper()
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []got
	for _, g := range c.got {
		if g.TGID != tgid {
			c.t.Errorf("record of process %d, which is no target: %v", g.TGID, g)
		}
		for _, k := range kinds {
			if g.Kind == k {
				out = append(out, g)
			}
		}
	}
	qt.Check(c.t, qt.HasLen(c.errs, 0))
	c.got = nil
	return sorted(out)
}

// sorted orders records by time: the buffers of several CPUs are read one after
// another.
func sorted(recs []got) []got {
	slices.SortStableFunc(recs, func(a, b got) int { return cmp.Compare(a.Ktime, b.Ktime) })
	return recs
}

const streamAndLog = WatchStream | WatchLog

// pair starts a victim with one end of a connected pair as fd 3 and returns the
// other end.
func (c *collector) pair(watch Watch) (*victim, *os.File) {
	c.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(c.t, qt.IsNil(err))
	theirs, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
	c.t.Cleanup(func() { ours.Close() })
	v := startVictim(c.t, theirs)
	theirs.Close()
	qt.Assert(c.t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 1, Watch: watch})))
	qt.Assert(c.t, qt.IsNil(c.s.SeedSocket(v.pid(), 3, inodeOf(c.t, v.pid(), 3), false)))
	return v, ours
}

func inodeOf(t testing.TB, pid uint32, fd int) uint64 {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	qt.Assert(t, qt.IsNil(err))
	var ino uint64
	_, err = fmt.Sscanf(name, "socket:[%d]", &ino)
	qt.Assert(t, qt.IsNil(err))
	return ino
}

func send(t testing.TB, f *os.File, data string) {
	t.Helper()
	_, err := f.WriteString(data)
	qt.Assert(t, qt.IsNil(err))
}

func (c *collector) noLosses() {
	c.t.Helper()
	qt.Check(c.t, qt.HasLen(c.losses(), 0), qt.Commentf("%v", c.losses()))
	c.mu.Lock()
	defer c.mu.Unlock()
	qt.Check(c.t, qt.Equals(c.lost, 0))
}

// header is a request header of n bytes.
func header(n int) string {
	const start, end = "POST / HTTP/1.1\r\nx: ", "\r\n\r\n"
	return start + strings.Repeat("y", n-len(start)-len(end)) + end
}

// readHeader reads as xapi does: 6, 12, then at most 4 bytes.
func readHeader(v *victim, fd int, hdr string) (reads int) {
	for at := 0; at < len(hdr); reads++ {
		n := 4
		switch reads {
		case 0:
			n = 6
		case 1:
			n = 12
		}
		at += v.read(fd, min(n, len(hdr)-at)).Ret
	}
	return reads
}

func TestRequestAndReplyKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		hdr, body := header(189), strings.Repeat("b", 500)
		replyHdr, replyBody := "HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n", strings.Repeat("r", 900)
		for round := range 2 {
			send(t, peer, hdr+body)
			reads := readHeader(v, 3, hdr)
			v.read(3, len(body))
			v.write(3, replyHdr)
			v.write(3, replyBody)

			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 4), qt.Commentf("%v", recs))
			qt.Check(t, qt.Equals(recs[0].Head, hdr))
			qt.Check(t, qt.Equals(int(recs[0].Data.Calls), reads))
			qt.Check(t, qt.Equals(recs[0].Data.Dir, DirIn))
			qt.Check(t, qt.Equals(recs[0].Flags, 0))
			qt.Check(t, qt.Equals(recs[1].Head, body))
			qt.Check(t, qt.Equals(recs[1].Flags, FlagMore))
			qt.Check(t, qt.Equals(recs[2].Head, replyHdr))
			qt.Check(t, qt.Equals(recs[2].Data.Dir, DirOut))
			qt.Check(t, qt.Equals(recs[2].Flags, 0))
			qt.Check(t, qt.Equals(recs[3].Head, replyBody))
			qt.Check(t, qt.Equals(recs[3].Flags, FlagMore))
			for i, r := range recs {
				d := r.Data
				qt.Check(t, qt.Equals(d.FD, 3))
				qt.Check(t, qt.Equals(d.Born, recs[0].Data.Born))
				qt.Check(t, qt.Equals(d.Ino, inodeOf(t, v.pid(), 3)))
				qt.Check(t, qt.Equals(r.Component, 1))
				qt.Check(t, qt.IsTrue(d.Born < d.First && d.First <= d.Last && d.Last <= r.Ktime), qt.Commentf("round %d record %d: %+v", round, i, d))
				if i > 0 {
					qt.Check(t, qt.IsTrue(recs[i-1].Data.Last < d.Last))
				}
			}
		}
		c.noLosses()
	})
}

// A short body is told when it is read, though nothing more happens on the socket.
func TestShortBodyKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		reply, body := "HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n", strings.Repeat("b", 40)
		for range 2 {
			v.write(3, strings.Repeat("w", 300))
			send(t, peer, reply)
			v.must(order{Do: "read", FD: 3, N: 1, Times: len(reply)})
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 2))
			qt.Check(t, qt.Equals(recs[1].Head, reply))
			send(t, peer, body)
			v.read(3, len(body))
			recs = c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 1))
			qt.Check(t, qt.Equals(recs[0].Head, body))
			qt.Check(t, qt.Equals(recs[0].Flags, FlagMore))
			qt.Check(t, qt.Equals(recs[0].Data.Dir, DirIn))
		}
		// what follows is gathered as ever
		send(t, peer, "halfhead")
		v.must(order{Do: "read", FD: 3, N: 4, Times: 2})
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 0))
		v.write(3, strings.Repeat("w", 300))
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 2))
		c.noLosses()
	})
}

func TestLongHeaderKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		for _, n := range []int{600, 1024, 1500, 4000} {
			hdr := header(n)
			send(t, peer, hdr)
			readHeader(v, 3, hdr)
			v.write(3, strings.Repeat("r", 300))
			recs := c.take(v.pid(), KindData)
			all := ""
			for _, r := range recs[:len(recs)-1] {
				all += r.Head
			}
			qt.Check(t, qt.Equals(all, hdr))
			qt.Check(t, qt.Equals(len(recs)-1, (n+1023)/1024), qt.Commentf("%d bytes", n))
		}
		c.noLosses()
	})
}

func TestSwitchRequestKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		line, hdrs := "POST /request/xenopsd/reply HTTP/1.1\r\n", "Content-Length: 20000\r\n\r\n"
		body := strings.Repeat("j", 20000)
		v.write(3, line)
		v.write(3, hdrs)
		v.write(3, body)
		send(t, peer, "HTTP/1.1 200 OK\r\n\r\n[[\"q\",7]]")
		v.read(3, 65536)
		recs := c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 3), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Head, line+hdrs))
		qt.Check(t, qt.Equals(recs[0].Data.Calls, 2))
		qt.Check(t, qt.Equals(recs[1].Head, body[:16384]))
		qt.Check(t, qt.Equals(recs[1].Tail, body[:1024]))
		qt.Check(t, qt.Equals(recs[1].Flags, FlagMore|FlagCut))
		qt.Check(t, qt.Equals(recs[2].Data.Dir, DirIn))

		// A short body waits for the turn: its thread's read.
		v.write(3, "POST /response/a/b/1 HTTP/1.1\r\n")
		v.write(3, "Content-Length: 2\r\n\r\n")
		v.write(3, "{}")
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 1))
		v.start(order{Do: "read", FD: 3, N: 65536})
		c.await(KindData)
		recs = c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 1))
		qt.Check(t, qt.Equals(recs[0].Head, "{}"))
		qt.Check(t, qt.Equals(recs[0].Flags, FlagMore))
		send(t, peer, "x")
		v.wait()
		c.take(v.pid())
		c.noLosses()
	})
}

func TestSwitchWordsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		for start, isSwitch := range map[string]bool{
			"POST /transfer": true, "POST /request/": true, "POST /response": true, "GET /login/12": true,
			"GET /persistent": true, "GET /transient": true, "GET /ack/q/1": true,
			"POST /reports/": false, "POST /jsonrpc ": false, "GET /logs/12": false, "GET /personal1": false, "POST / HTTP/1": false,
		} {
			v, _ := c.pair(streamAndLog)
			msg := start + strings.Repeat(".", 8000)
			v.write(3, msg)
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 1))
			want := msg
			if !isSwitch {
				want = msg[:4096]
				qt.Check(t, qt.Equals(recs[0].Tail, msg[len(msg)-1024:]))
			}
			qt.Check(t, qt.Equals(recs[0].Head, want), qt.Commentf(start))
			v.kill()
			c.take(v.pid())
		}
	})
}

func TestLargePieceKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		for _, n := range []int{257, 4096, 4097, 5000, 5120, 5121, 60000} {
			data := make([]byte, n)
			for i := range data {
				data[i] = byte('a' + i*7%26)
			}
			for dir, do := range map[uint8]func(){
				DirIn:  func() { send(t, peer, string(data)); v.read(3, n) },
				DirOut: func() { v.write(3, string(data)); peer.Read(make([]byte, n)) },
			} {
				do()
				recs := c.take(v.pid(), KindData)
				qt.Assert(t, qt.HasLen(recs, 1), qt.Commentf("%d bytes, direction %d: %v", n, dir, recs))
				r := recs[0]
				head, tail := min(n, 4096), min(max(n-4096, 0), 1024)
				qt.Check(t, qt.Equals(r.Head, string(data[:head])))
				qt.Check(t, qt.Equals(r.Tail, string(data[n-tail:])))
				qt.Check(t, qt.Equals(r.Flags&FlagCut != 0, head+tail < n))
				qt.Check(t, qt.Equals(r.Data.Bytes, uint64(n)))
				qt.Check(t, qt.Equals(r.Data.Dir, dir))
			}
		}
		c.noLosses()
	})
}

func TestBulkKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		go func() { // drain
			b := make([]byte, 1<<16)
			for {
				if _, err := peer.Read(b); err != nil {
					return
				}
			}
		}()
		piece := strings.Repeat("p", 32768)
		v.must(order{Do: "write", FD: 3, Data: piece, Times: 10})
		recs := c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 2), qt.Commentf("%v", recs)) // until 65,536 had gone
		v.start(order{Do: "read", FD: 3, N: 100})
		c.await(KindData)
		recs = c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 1))
		qt.Check(t, qt.Equals(recs[0].Flags, FlagMore|FlagCut))
		qt.Check(t, qt.Equals(recs[0].Data.Bytes, 8*32768))
		qt.Check(t, qt.Equals(recs[0].Data.Calls, 8))
		qt.Check(t, qt.Equals(recs[0].Head, ""))
		qt.Check(t, qt.IsTrue(recs[0].Data.First < recs[0].Data.Last))
		send(t, peer, "reply")
		v.wait()
		recs = c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 1))
		qt.Check(t, qt.Equals(recs[0].Flags, 0))

		// And at the close.
		v.must(order{Do: "write", FD: 3, Data: piece, Times: 3})
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 2))
		v.must(order{Do: "close", FD: 3})
		recs = c.take(v.pid(), KindData, KindClose)
		qt.Assert(t, qt.HasLen(recs, 2), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Data.Bytes, 32768))
		qt.Check(t, qt.Equals(recs[1].Close.BytesOut, 13*32768))
		qt.Check(t, qt.Equals(recs[1].Close.BytesIn, 5))
		c.noLosses()
	})
}

func TestGatherEndsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		for name, end := range map[string]func(v *victim, peer *os.File){
			"turn":     func(v *victim, peer *os.File) { v.write(3, strings.Repeat("w", 300)) },
			"larger":   func(v *victim, peer *os.File) { send(t, peer, "more"); v.read(3, 65) },
			"close":    func(v *victim, peer *os.File) { v.must(order{Do: "close", FD: 3}) },
			"shutdown": func(v *victim, peer *os.File) { v.must(order{Do: "shutdown", FD: 3}) },
			"eof":      func(v *victim, peer *os.File) { peer.Close(); v.read(3, 4) },
			"dup2":     func(v *victim, peer *os.File) { v.must(order{Do: "dup2", FD: 0, N: 3}) },
		} {
			v, peer := c.pair(streamAndLog)
			send(t, peer, "halfhead")
			v.must(order{Do: "read", FD: 3, N: 4, Times: 2})
			qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 0), qt.Commentf(name))
			end(v, peer)
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.IsTrue(len(recs) >= 1), qt.Commentf(name))
			qt.Check(t, qt.Equals(recs[0].Head, "halfhead"), qt.Commentf(name))
			qt.Check(t, qt.Equals(recs[0].Data.Calls, 2), qt.Commentf(name))
			v.kill()
			c.take(v.pid())
		}
		c.noLosses()
	})
}

func TestEOFKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		peer.Close()
		v.must(order{Do: "read", FD: 3, N: 100, Times: 3})
		recs := c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 1)) // once
		qt.Check(t, qt.Equals(recs[0].Flags, FlagEOF))
		qt.Check(t, qt.Equals(recs[0].Data.Bytes, 0))
		c.noLosses()
	})
}

func TestVectorsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		hdr, body := header(200), strings.Repeat("v", 6000)+"end"
		for _, do := range []string{"writev", "sendmsg"} {
			v.must(order{Do: do, FD: 3, Parts: []string{hdr, body}})
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 1))
			qt.Check(t, qt.Equals(recs[0].Head, (hdr + body)[:4096]))
			qt.Check(t, qt.Equals(recs[0].Tail, body[len(body)-1024:]))
			peer.Read(make([]byte, 65536))
			send(t, peer, "turn")
			v.read(3, 100)
			c.take(v.pid())
		}
		for _, do := range []string{"readv", "recvmsg"} {
			send(t, peer, "one two three")
			v.must(order{Do: do, FD: 3, Parts: []string{"....", "....", "......"}})
			v.write(3, strings.Repeat("w", 300))
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 2))
			qt.Check(t, qt.Equals(recs[0].Head, "one two three"))
			peer.Read(make([]byte, 65536))
		}
		for _, do := range []string{"peek", "recvfrom"} {
			if do == "peek" {
				send(t, peer, strings.Repeat("s", 100))
			}
			v.must(order{Do: do, FD: 3, N: 1000})
		}
		v.must(order{Do: "sendto", FD: 3, Data: strings.Repeat("o", 300)})
		recs := c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 2), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Data.Bytes, 100))
		qt.Check(t, qt.Equals(recs[1].Data.Bytes, 300))
		c.noLosses()

		v.must(order{Do: "sendmsg", FD: 3, Parts: []string{"1", "2", "3", "4", strings.Repeat("5", 300)}})
		recs = c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 1))
		qt.Check(t, qt.Equals(recs[0].Head, "1234"))
		qt.Check(t, qt.Equals(recs[0].Data.Bytes, 304))
		qt.Check(t, qt.Equals(recs[0].Flags, FlagMore|FlagCut))
		qt.Check(t, qt.DeepEquals(c.losses(), []Loss{{Stream, lossNames[lossIovec], 1}}))
	})
}

func TestAcceptAndReuseKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 2, Watch: streamAndLog})))
		path := filepath.Join(t.TempDir(), "s")
		l := v.must(order{Do: "listen", Path: path}).Ret
		var born uint64
		var fd int
		for round := range 4 {
			conn, err := net.Dial("unix", path)
			qt.Assert(t, qt.IsNil(err))
			got := v.must(order{Do: "accept", FD: l}).Ret
			if round > 0 {
				qt.Assert(t, qt.Equals(got, fd), qt.Commentf("the number is not reused"))
			}
			fd = got
			msg := fmt.Sprintf("message of round %d", round)
			conn.Write([]byte(msg))
			v.read(fd, 64)
			if round == 3 {
				// A dup2 closes, too.
				v.must(order{Do: "dup2", FD: 0, N: fd})
			} else {
				v.must(order{Do: "close", FD: fd})
			}
			conn.Close()
			recs := c.take(v.pid(), KindOpen, KindData, KindClose)
			qt.Assert(t, qt.HasLen(recs, 3), qt.Commentf("%v", recs))
			qt.Check(t, qt.Equals(recs[0].Open.How, HowAccepted))
			qt.Check(t, qt.Equals(recs[0].Open.ListenFD, int32(l)))
			qt.Check(t, qt.Equals(recs[1].Head, msg))
			qt.Check(t, qt.IsTrue(recs[0].Open.Born > born))
			born = recs[0].Open.Born
			qt.Check(t, qt.Equals(recs[1].Data.Born, born))
			qt.Check(t, qt.Equals(recs[2].Close.Born, born))
			if c.s.tier == Modern {
				qt.Check(t, qt.Not(qt.Equals(recs[0].Open.Ino, 0)))
			}
		}
		c.noLosses()
	})
}

func TestTCPPeerKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Watch: streamAndLog})))
		r := v.must(order{Do: "listen6"})
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.Ret2))
		if err != nil {
			t.Skip("needs IPv4 on a dual-stack loopback")
		}
		defer conn.Close()
		v.must(order{Do: "accept", FD: r.Ret})
		recs := c.take(v.pid(), KindOpen)
		qt.Assert(t, qt.HasLen(recs, 1))
		o := recs[0].Open
		qt.Check(t, qt.Equals(o.Family, unix.AF_INET6))
		qt.Check(t, qt.Equals(int(o.PeerPort), conn.LocalAddr().(*net.TCPAddr).Port))
		qt.Check(t, qt.Equals(net.IP(o.Peer[:]).String(), "127.0.0.1"))
		c.noLosses()
	})
}

func TestConnectKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		qt.Assert(t, qt.IsNil(err))
		defer l.Close()
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Watch: streamAndLog})))
		qt.Check(t, qt.Not(qt.Equals(v.do(order{Do: "connect", Path: path + "none"}).Errno, 0)))
		fd := v.must(order{Do: "connect", Path: path}).Ret
		v.write(fd, strings.Repeat("c", 300))
		p := v.must(order{Do: "pair"})
		v.write(p.Ret, strings.Repeat("p", 300))
		recs := c.take(v.pid(), KindOpen, KindData)
		qt.Assert(t, qt.HasLen(recs, 5), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Open.How, HowConnected))
		qt.Check(t, qt.Equals(recs[0].Open.Family, unix.AF_UNIX))
		qt.Check(t, qt.Equals(recs[1].Head, strings.Repeat("c", 300)))
		qt.Check(t, qt.Equals(recs[2].Open.How, HowPaired))
		qt.Check(t, qt.Equals(recs[2].Open.FD, int32(p.Ret)))
		qt.Check(t, qt.Equals(recs[3].Open.FD, int32(p.Ret2)))
		qt.Check(t, qt.Equals(recs[4].Head, strings.Repeat("p", 300)))
		c.noLosses()
	})
}

// Two threads use one socket in turn, as xapi's threads do with the connection
// to message-switch under a mutex.
func TestThreadsInTurnKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		for i := range 6 {
			th := 1 + i%2
			msg := fmt.Sprintf("GET /ack/q/%d HTTP/1.1\r\n", i)
			tid := v.must(order{Thread: th, Do: "write", FD: 3, Data: msg}).TID
			v.must(order{Thread: th, Do: "write", FD: 3, Data: "\r\n"})
			send(t, peer, "ok")
			v.must(order{Thread: th, Do: "read", FD: 3, N: 65536})
			recs := c.take(v.pid(), KindData)
			qt.Assert(t, qt.HasLen(recs, 2), qt.Commentf("%v", recs))
			qt.Check(t, qt.Equals(recs[0].Head, msg+"\r\n"))
			for _, r := range recs {
				qt.Check(t, qt.Equals(r.TID, uint32(tid)))
				qt.Check(t, qt.Equals(r.Flags, 0))
			}
		}
		c.noLosses()
	})
}

// A thread blocks in a read while another one writes and closes.
func TestBlockedReaderKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		v.start(order{Thread: 1, Do: "read", FD: 3, N: 65536})
		v.blocked(unix.SYS_READ, 3)
		v.start(order{Thread: 2, Do: "write", FD: 3, Data: "small"})
		_, err := io.ReadFull(peer, make([]byte, len("small")))
		qt.Assert(t, qt.IsNil(err))
		v.quiet()
		send(t, peer, "answer")
		v.wait()
		v.wait()
		recs := c.take(v.pid(), KindData)
		qt.Assert(t, qt.HasLen(recs, 2), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Head, "small"))
		qt.Check(t, qt.Equals(recs[1].Head, "answer"))
		c.noLosses()
	})
}

func TestSeedThreadsKernel(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		t.Run(tier.String(), func(t *testing.T) {
			c := collect(t, openKernel(t, tier, Options{}))
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			qt.Assert(t, qt.IsNil(err))
			theirs, peer := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
			defer peer.Close()
			v := startVictim(t, theirs)
			path := filepath.Join(t.TempDir(), "s")
			l := v.must(order{Do: "listen", Path: path}).Ret
			v.start(order{Thread: 1, Do: "read", FD: 3, N: 1000})
			v.start(order{Thread: 2, Do: "accept", FD: l})
			v.blocked(unix.SYS_READ, 3)
			v.blocked(unix.SYS_ACCEPT4, l)

			qt.Assert(t, qt.IsNil(c.s.Attach(Stream)))
			qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Watch: streamAndLog})))
			qt.Assert(t, qt.IsNil(c.s.SeedSocket(v.pid(), 3, inodeOf(t, v.pid(), 3), false)))
			qt.Assert(t, qt.IsNil(c.s.SeedThreads(v.pid())))
			send(t, peer, "the long-awaited answer")
			v.wait()
			conn, err := net.Dial("unix", path)
			qt.Assert(t, qt.IsNil(err))
			defer conn.Close()
			v.wait()
			recs := c.take(v.pid(), KindData, KindOpen)
			qt.Assert(t, qt.HasLen(recs, 3), qt.Commentf("%v", recs))
			qt.Check(t, qt.Equals(recs[0].Open.How, HowSeeded))
			qt.Check(t, qt.Equals(recs[1].Head, "the long-awaited answer"))
			qt.Check(t, qt.Equals(recs[1].Flags, FlagNoEnter))
			qt.Check(t, qt.Equals(recs[2].Open.How, HowAccepted))
		})
	}
}

func TestLogKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		path := filepath.Join(t.TempDir(), "log")
		sink, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		qt.Assert(t, qt.IsNil(err))
		defer sink.Close()
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 2, Watch: streamAndLog})))
		fd := v.must(order{Do: "connect-dgram", Path: path}).Ret
		line := "<175>Nov 22 12:23:00 xapi: [debug||10 127.0.0.1:80||server_io] hello"
		long := "<174>" + strings.Repeat("l", 5000)
		r := v.must(order{Thread: 5, Do: "sendto", FD: fd, Data: line})
		v.must(order{Do: "write", FD: fd, Data: line})
		v.must(order{Do: "sendmsg", FD: fd, Parts: []string{"<1", "7>x"}})
		v.must(order{Do: "sendto", FD: fd, Data: long})
		v.must(order{Do: "sendto", FD: fd, Data: "no line"})
		v.must(order{Do: "sendto", FD: fd, Data: "<x"})
		recs := c.take(v.pid(), KindLog, KindData, KindOpen)
		qt.Assert(t, qt.HasLen(recs, 4), qt.Commentf("%v", recs))
		qt.Check(t, qt.Equals(recs[0].Head, line))
		qt.Check(t, qt.Equals(recs[0].TID, uint32(r.TID)))
		qt.Check(t, qt.Equals(recs[0].Component, 2))
		qt.Check(t, qt.Equals(recs[1].Head, line))
		qt.Check(t, qt.Equals(recs[2].Head, "<17>x"))
		qt.Check(t, qt.Equals(recs[3].Head, long[:1024]))
		qt.Check(t, qt.Equals(recs[3].Log.Bytes, uint32(len(long))))
		qt.Check(t, qt.Equals(recs[3].Flags, FlagCut))

		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Component: 2, Watch: WatchStream})))
		v.must(order{Do: "sendto", FD: fd, Data: line})
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindLog), 0))
		c.noLosses()
	})
}

func TestNoTargetKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		qt.Assert(t, qt.IsNil(c.s.DeleteTarget(v.pid())))
		send(t, peer, "hello")
		v.read(3, 100)
		v.write(3, strings.Repeat("w", 300))
		p := v.must(order{Do: "pair"})
		v.write(p.Ret, strings.Repeat("w", 300))
		v.must(order{Do: "exec", Parts: []string{"/bin/true"}})
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData, KindOpen, KindClose, KindLog, KindFork, KindExec, KindExit), 0))
		keys, err := mapKeys[connKey](c.s.maps["dt_conns"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(keys, 0))

		// A target of which nothing but processes is watched.
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Watch: WatchProcess})))
		p = v.must(order{Do: "pair"})
		v.write(p.Ret, strings.Repeat("w", 300))
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData, KindOpen, KindClose, KindLog), 0))
		c.noLosses()
	})
}

func TestKilledKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog | WatchProcess)
		send(t, peer, "half")
		v.read(3, 4)
		v.start(order{Thread: 3, Do: "read", FD: 3, N: 4})
		v.blocked(unix.SYS_READ, 3)
		keys, err := mapKeys[uint64](c.s.maps["dt_inflight"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsTrue(len(keys) >= 2), qt.Commentf("%d threads", len(keys)))
		v.kill()
		c.take(v.pid())
		for _, name := range []string{"dt_inflight", "dt_clones", "dt_execs"} {
			m := c.s.maps[name]
			k := make([]byte, m.KeySize())
			qt.Check(t, qt.IsNotNil(m.NextKey(nil, &k)), qt.Commentf("%s has an entry left", name))
		}
		// The kernel closed the socket without a system call: the sweep finds it, and says so.
		c.s.mu.Lock()
		qt.Check(t, qt.IsNil(c.s.sweepTargets()))
		qt.Check(t, qt.IsNil(c.s.sweepConns()))
		c.s.mu.Unlock()
		tgids, err := mapKeys[uint32](c.s.maps["dt_targets"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(tgids, 0))
		keys2, err := mapKeys[connKey](c.s.maps["dt_conns"])
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.HasLen(keys2, 0))
		qt.Check(t, qt.DeepEquals(c.losses(), []Loss{{Stream, lossNames[lossEnded], 1}}))
	})
}

// close_range may have closed any socket: none is known after it, and it is said.
func TestCloseRangeKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		r := v.do(order{Do: "close_range", FD: 500})
		if r.Errno != 0 {
			t.Skip("needs close_range (Linux 5.9)")
		}
		send(t, peer, strings.Repeat("x", 300))
		v.read(3, 300)
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 0))
		qt.Check(t, qt.DeepEquals(c.losses(), []Loss{{Stream, lossNames[lossForgot], 1}}))
		// It can be made known again.
		c.s.mu.Lock()
		qt.Check(t, qt.IsNil(c.s.sweepConns()))
		c.s.mu.Unlock()
		qt.Assert(t, qt.IsNil(c.s.SeedSocket(v.pid(), 3, inodeOf(t, v.pid(), 3), false)))
		send(t, peer, strings.Repeat("x", 300))
		v.read(3, 300)
		qt.Check(t, qt.HasLen(c.take(v.pid(), KindData), 1))
	})
}

// An exec takes the place of the program whose sockets were known.
func TestExecForgetsSocketsKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		var before target
		v, _ := c.pair(streamAndLog | WatchProcess)
		qt.Assert(t, qt.IsNil(c.s.maps["dt_targets"].Lookup(v.pid(), &before)))
		v.start(order{Do: "become", Parts: []string{"/bin/sleep", "60"}})
		c.await(KindExec)
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		var after target
		qt.Assert(t, qt.IsNil(c.s.maps["dt_targets"].Lookup(v.pid(), &after)))
		qt.Check(t, qt.IsTrue(after.Since > before.Since))
		qt.Check(t, qt.IsNil(c.s.sweepConns()))
		var left conn
		qt.Check(t, qt.IsNotNil(c.s.maps["dt_conns"].Lookup(connKey{v.pid(), 3}, &left)))
	})
}

// A record that nothing follows arrives all the same, and soon.
func TestLatencyKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		var worst time.Duration
		for range 20 {
			send(t, peer, strings.Repeat("x", 100))
			v.read(3, 100)
			start := time.Now()
			for {
				c.mu.Lock()
				n := len(ofKind(c.got, KindData))
				c.mu.Unlock()
				if n > 0 {
					break
				}
				qt.Assert(t, qt.IsTrue(time.Since(start) < 2*time.Second), qt.Commentf("no record"))
				time.Sleep(time.Millisecond)
			}
			worst = max(worst, time.Since(start))
			c.mu.Lock()
			c.got = nil
			c.mu.Unlock()
		}
		t.Logf("worst of 20: %v", worst)
	})
}

// What the toolstack makes arrives whole.
func TestRateKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		go func() {
			b := make([]byte, 1<<16)
			for {
				if _, err := peer.Read(b); err != nil {
					return
				}
			}
		}()
		// After each batch the reader gets its turn: how soon that is, is up to the
		// machine, and a buffer that is read too late is another test's matter.
		const batch, batches = 1000, 20
		seen := func() int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(ofKind(c.got, KindData))
		}
		start := time.Now()
		for i := range batches {
			v.must(order{Do: "write", FD: 3, Data: header(256), Times: batch})
			for deadline := time.Now().Add(time.Minute); seen() < (i+1)*batch-1 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // the last one is still gathered
			}
		}
		recs := c.take(v.pid(), KindData)
		t.Logf("%.0f records/s", batch*batches/time.Since(start).Seconds())
		qt.Check(t, qt.Equals(len(recs), batch*batches))
		c.noLosses()
	})
}

// A thread that moves between CPUs while the reader gets no processor: the
// buffers of all CPUs are full of its records, and each goes out in its turn.
func TestOrderKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		if runtime.NumCPU() < 2 {
			t.Skip("needs two CPUs")
		}
		v, peer := c.pair(streamAndLog)
		go io.Copy(io.Discard, peer)
		tid := v.must(order{Do: "tid"}).TID
		early, late := c.s.Order()
		const rounds, batch = 20, 50 // of 300 bytes: half a CPU's buffer is more than all that
		c.mu.Lock()                  // the reader stands still when it has one record
		for i := range rounds {
			var one unix.CPUSet
			one.Set(i % 2)
			qt.Assert(t, qt.IsNil(unix.SchedSetaffinity(tid, &one)))
			v.must(order{Do: "write", FD: 3, Data: header(200), Times: batch})
		}
		c.mu.Unlock()
		c.settle()
		c.mu.Lock()
		recs := slices.DeleteFunc(c.got, func(g got) bool { return g.Kind != KindData || g.TGID != v.pid() })
		c.got = nil
		c.mu.Unlock()
		qt.Assert(t, qt.HasLen(recs, rounds*batch))
		cpus := map[uint16]bool{}
		for i := range recs {
			cpus[recs[i].CPU] = true
			if i > 0 {
				qt.Assert(t, qt.IsTrue(recs[i-1].Ktime <= recs[i].Ktime), qt.Commentf("record %d", i))
			}
		}
		qt.Check(t, qt.HasLen(cpus, 2))
		earlyNow, lateNow := c.s.Order()
		qt.Check(t, qt.Equals(earlyNow, early))
		qt.Check(t, qt.Equals(lateNow, late))
		c.noLosses()
	})
}
