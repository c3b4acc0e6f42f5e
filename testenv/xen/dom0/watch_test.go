//go:build linux

package dom0

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// hang is how long a test waits for what has to come.
const hang = 10 * time.Minute

// long is how long the waits are that these tests make.
const long = 60 * time.Millisecond

// watcher has the wait probe attached and keeps what it tells.
type watcher struct {
	t     *testing.T
	s     *bpf.Session
	ended chan struct{}

	mu    sync.Mutex
	times []bpf.TimeRec
	exits map[uint32]bool // thread ids
	lost  uint64
}

func watch(t *testing.T, tier bpf.Tier) *watcher {
	t.Helper()
	k, err := bpf.Open(bpf.Options{Legacy: tier == bpf.Legacy})
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(k.Tier(), tier))
	s, err := k.Load()
	qt.Assert(t, qt.IsNil(err))
	w := &watcher{t: t, s: s, ended: make(chan struct{}), exits: map[uint32]bool{}}
	go w.read()
	t.Cleanup(w.close)
	qt.Assert(t, qt.IsNil(s.SetWait(1))) // 1 ns: each wait is told by itself
	qt.Assert(t, qt.IsNil(s.Attach(bpf.Process)))
	qt.Assert(t, qt.IsNil(s.Attach(bpf.Wait)))
	return w
}

func (w *watcher) close() {
	qt.Check(w.t, qt.IsNil(w.s.Close()))
	<-w.ended
}

func (w *watcher) read() {
	defer close(w.ended)
	var r bpf.Record
	for {
		err := w.s.Read(&r)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		var h bpf.Hdr
		if _, err2 := binary.Decode(r.Raw, binary.LittleEndian, &h); err != nil || err2 != nil {
			w.t.Errorf("read: %v, %v", err, err2)
			return
		}
		w.mu.Lock()
		w.lost += r.Lost
		switch h.Kind {
		case bpf.KindTime:
			var tm bpf.TimeRec
			if _, err := binary.Decode(r.Raw, binary.LittleEndian, &tm); err != nil {
				w.t.Errorf("record of time: %v", err)
			}
			w.times = append(w.times, tm)
		case bpf.KindExit:
			w.exits[h.TID] = true
		}
		w.mu.Unlock()
	}
}

// run runs a program that is watched from before its first instruction on, and
// returns its process id and what it printed. meanwhile is called with its first
// line, if it is not nil.
func (w *watcher) run(meanwhile func(pid int), argv ...string) (tgid uint32, out []byte) {
	w.t.Helper()
	what := qt.Commentf("%q", argv)
	cmd := exec.Command("bash", append([]string{"-c", `read -r && exec "$@"`, "bash"}, argv...)...)
	cmd.Env = append(os.Environ(), callerEnv+"=1")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	qt.Assert(w.t, qt.IsNil(err))
	pipe, err := cmd.StdoutPipe()
	qt.Assert(w.t, qt.IsNil(err))
	qt.Assert(w.t, qt.IsNil(cmd.Start()), what)
	stuck := time.AfterFunc(hang, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	tgid = uint32(cmd.Process.Pid)
	qt.Assert(w.t, qt.IsNil(w.s.SetTarget(tgid, bpf.Target{Component: 1, Watch: bpf.WatchProcess | bpf.WatchWait})))
	_, err = io.WriteString(in, "go\n\n") // a line for bash, one for a caller
	qt.Assert(w.t, qt.IsNil(err))
	in.Close()
	buf := make([]byte, 4096)
	for {
		n, err := pipe.Read(buf)
		out = append(out, buf[:n]...)
		if n > 0 && meanwhile != nil {
			meanwhile(cmd.Process.Pid)
			meanwhile = nil
		}
		if err != nil {
			break
		}
	}
	qt.Assert(w.t, qt.IsNil(cmd.Wait()), qt.Commentf("%q: %s", argv, &errs))
	w.until(fmt.Sprintf("end of %q", argv), func() bool { return w.exits[tgid] })
	return tgid, out
}

// until waits for a condition on what was read.
func (w *watcher) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(hang); ; time.Sleep(10 * time.Millisecond) {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("nothing was told of the %s", what)
		}
	}
}

// whole checks that nothing was lost that could have been a wait.
func (w *watcher) whole() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	qt.Check(w.t, qt.Equals(w.lost, 0))
	w.t.Logf("losses: %+v", w.s.Losses())
}

// waits returns the waits that a process told by themselves, in their order.
func (w *watcher) waits(tgid uint32) (out []bpf.TimeRec) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.times {
		if r.TGID == tgid && r.Wait != 0 {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b bpf.TimeRec) int { return int(int64(a.First - b.First)) })
	return out
}

// hypercalls returns the hypercalls of a process: their number, with a domctl's
// command above it.
func (w *watcher) hypercalls(tgid uint32) (out []uint64) {
	for _, r := range w.waits(tgid) {
		if event.Spent(r.Wait) == event.Hypercall {
			out = append(out, r.Detail)
		}
	}
	return out
}

func domctl(cmd uint64) uint64 { return opDomctl | cmd<<32 }

func count[T comparable](all []T, one T) (n int) {
	for _, v := range all {
		if v == one {
			n++
		}
	}
	return n
}

func inTiers(t *testing.T, f func(t *testing.T, w *watcher)) {
	needDom0(t)
	for _, tier := range []bpf.Tier{bpf.Legacy, bpf.Modern} {
		t.Run(tier.String(), func(t *testing.T) { f(t, watch(t, tier)) })
	}
}
