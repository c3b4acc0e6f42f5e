//go:build linux

package capture

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes"
	"github.com/xenserver/dtagent/probes/event"
)

// TestModelIsTheKernel lets a real process make random system calls under the
// real programs, tells the model of the same calls, and compares the events.
func TestModelIsTheKernel(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		k, err := bpf.Open(bpf.Options{Legacy: legacy})
		if errors.Is(err, bpf.ErrKernel) {
			t.Skip("needs eBPF: " + strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		qt.Assert(t, qt.IsNil(err))
		session, err := k.Load()
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(session.Attach(bpf.Stream)))
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%v/%d", k.Tier(), seed), func(t *testing.T) { comparePlayer(t, session, seed) })
		}
		qt.Assert(t, qt.IsNil(session.Close()))
	}
}

func comparePlayer(t *testing.T, session *bpf.Session, seed uint64) {
	exe, err := os.Executable()
	qt.Assert(t, qt.IsNil(err))
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", playerEnv, seed))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	qt.Assert(t, qt.IsNil(err))
	stdout, err := cmd.StdoutPipe()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(cmd.Start()))
	defer cmd.Wait()
	defer in.Close()
	out := bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	qt.Assert(t, qt.IsNil(err))
	player := Task{TGID: uint32(cmd.Process.Pid)}
	_, err = fmt.Sscan(line, &player.TID)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(session.SetTarget(player.TGID, bpf.Target{Component: uint8(event.Xapi), Watch: bpf.WatchStream | bpf.WatchLog})))

	got := make(chan []event.Event, 1)
	go func() { got <- collect(t, session) }()
	_, err = fmt.Fprintln(in)
	qt.Assert(t, qt.IsNil(err))
	var steps []step
	qt.Assert(t, qt.IsNil(json.NewDecoder(out).Decode(&steps)))
	var seen []event.Event
	select {
	case seen = <-got:
	case <-time.After(20 * time.Second):
		t.Fatal("the last record did not come")
	}
	losses := slices.DeleteFunc(session.Losses(), func(l bpf.Loss) bool {
		return l.Cause == "socket ended with its process" // those that an earlier player left open
	})
	qt.Assert(t, qt.HasLen(losses, 0), qt.Commentf("%v", losses))
	qt.Assert(t, qt.IsNil(session.DeleteTarget(player.TGID)))

	want := model(player, steps)
	for i := range max(len(seen), len(want)) {
		a, b := "nothing", "nothing"
		if i < len(seen) {
			a = shape(&seen[i])
		}
		if i < len(want) {
			b = shape(&want[i])
		}
		if a != b {
			t.Fatalf("event %d:\nkernel %s\nmodel  %s\nbefore %s", i, a, b, shape(&want[max(i-1, 0)]))
		}
	}
	checkTimes(t, seen)
	t.Logf("%d calls, %d events", len(steps), len(seen))
}

// collect reads the events up to the player's last line, in order of time.
func collect(t *testing.T, session *bpf.Session) []event.Event {
	var out []event.Event
	var decoder probes.Decoder
	var rec bpf.Record
	for {
		if err := session.Read(&rec); err != nil {
			return out
		}
		if rec.Lost > 0 {
			t.Errorf("%d records lost", rec.Lost)
		}
		if rec.Raw == nil {
			continue
		}
		var e event.Event
		if err := decoder.Decode(&e, rec.Raw); err != nil {
			t.Error(err)
			continue
		}
		if string(e.Head) == lastLine {
			break
		}
		e.Head, e.Tail = slices.Clone(e.Head), slices.Clone(e.Tail)
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b event.Event) int { return cmp.Compare(a.Time, b.Time) })
	return out
}

// model tells a Kernel of the player's calls. What a read returned is what was
// written at the other end.
func model(player Task, steps []step) []event.Event {
	var out []event.Event
	k := NewKernel(func(e *event.Event) { out = append(out, *e) })
	k.SetTarget(player.TGID, event.Xapi, WatchStream|WatchLog)
	type end struct {
		peer  *end
		queue []byte
	}
	ends := make(map[int]*end)
	now := event.Time(0)
	for _, s := range steps {
		now += 10
		switch s.Call {
		case "pair":
			a, b := &end{}, &end{}
			a.peer, b.peer = b, a
			ends[s.FDs[0]], ends[s.FDs[1]] = a, b
			k.SocketPair(now, player, [2]int32{int32(s.FDs[0]), int32(s.FDs[1])})
		case "socket":
			ends[s.FDs[0]] = &end{peer: &end{}}
			k.Socket(now, player, int32(s.FDs[0]))
		case "read":
			k.ReadEnter(now, player, int32(s.FD), s.Ask)
			var data []byte
			if s.Ret > 0 {
				e := ends[s.FD]
				data, e.queue = e.queue[:s.Ret], e.queue[s.Ret:]
			}
			k.ReadExit(now+5, player, int64(s.Ret), data)
		case "write", "log":
			data := s.content()
			if s.Call == "log" {
				data = append([]byte("<30>"), data...)
			} else if s.Ret > 0 {
				peer := ends[s.FD].peer
				peer.queue = append(peer.queue, data[:s.Ret]...)
			}
			k.WriteEnter(now, player, int32(s.FD), len(data))
			k.WriteExit(now+5, player, int64(s.Ret), data)
		case "shutdown":
			k.Shutdown(now, player, int32(s.FD))
		case "close":
			k.Close(now, player, int32(s.FD))
			delete(ends, s.FD)
		}
	}
	return out
}

// shape is what the model must tell of an event: all but times and inodes.
func shape(e *event.Event) string {
	return fmt.Sprintf("kind %d component %v flags %#x dir %d how %d thread %d/%d fd %d bytes %d calls %d head %d %q tail %d %q",
		e.Kind, e.Component, e.Flags, e.Dir, e.How, e.TGID, e.TID, e.Conn.FD, e.Bytes, e.Calls, len(e.Head), e.Head,
		len(e.Tail), e.Tail)
}

// checkTimes checks what the model cannot tell: that the events of a socket
// have one birth and times in order.
func checkTimes(t *testing.T, events []event.Event) {
	born := make(map[int32]event.Time)
	last := make(map[int32]event.Time)
	for _, e := range events {
		fd := e.Conn.FD
		switch e.Kind {
		case event.KindOpen:
			born[fd], last[fd] = e.Conn.Born, e.Conn.Born
		case event.KindClose, event.KindData:
			qt.Assert(t, qt.Equals(e.Conn.Born, born[fd]))
		}
		if e.Kind == event.KindData {
			if e.First < last[fd] || e.Last < e.First || e.Time < e.Last {
				t.Fatalf("times out of order: last %d, first %d, last %d, event %d", last[fd], e.First, e.Last, e.Time)
			}
			last[fd] = e.Last
		}
	}
}
