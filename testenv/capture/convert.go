package capture

import (
	"path"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

// Conversion is what became of a recording.
type Conversion struct {
	Events  []event.Event  // in order of Time, no two at the same
	Orphans int            // ends of calls whose start was not recorded
	Unknown map[string]int // calls on streams that the converter does not know, by name
}

// Convert turns a recording into the events that the kernel side would have
// made of it with the daemons of procs as targets. Event times are the wall
// times of the recording.
func Convert(records []strace.Record, procs *Processes) *Conversion {
	out := &Conversion{Unknown: make(map[string]int)}
	c := converter{procs: procs, out: out, tgids: make(map[uint32]uint32)}
	c.kernel = NewKernel(func(e *event.Event) { out.Events = append(out.Events, *e) })
	if len(records) == 0 {
		return out
	}
	for tid, tgid := range procs.Threads {
		c.tgids[tid] = tgid
	}
	c.seed(records)
	for i := range records {
		c.record(&records[i])
	}
	out.Orphans = c.kernel.Orphans
	slices.SortStableFunc(out.Events, func(a, b event.Event) int { return int(a.Time - b.Time) })
	// The recording's clock has microseconds; the kernel's hardly ever stands still.
	for i := 1; i < len(out.Events); i++ {
		if out.Events[i].Time <= out.Events[i-1].Time {
			out.Events[i].Time = out.Events[i-1].Time + 1
		}
	}
	return out
}

type converter struct {
	procs  *Processes
	kernel *Kernel
	out    *Conversion
	tgids  map[uint32]uint32 // tid → tgid
}

// seed makes targets of the daemons and their stream sockets known, one
// millisecond before the recording begins. What a socket is (a stream, and
// whether its peer is message-switch) the agent learns from sock_diag; here
// the recording itself tells it.
func (c *converter) seed(records []strace.Record) {
	begin := event.Time(records[0].Time) - 1e6
	for tgid, name := range c.procs.Names {
		if comp := component(name); comp != event.NoComponent {
			c.kernel.SetTarget(tgid, comp, WatchStream|WatchLog|WatchProcess)
		}
	}
	type use struct{ stream, toSwitch bool }
	uses := make(map[uint64]use)
	for _, r := range records {
		if r.Kind != strace.Exit || len(r.Call.Args) == 0 {
			continue
		}
		fd, _ := r.Call.Args[0].FD()
		if !fd.Stream() {
			continue
		}
		u := uses[fd.Ino]
		u.stream = true
		if r.Call.Name == "write" && len(r.Call.Args) > 1 {
			b, _, _ := r.Call.Args[1].Bytes()
			u.toSwitch = u.toSwitch || switchRequest(b)
		}
		uses[fd.Ino] = u
	}
	for tgid, sockets := range c.procs.Sockets {
		for _, s := range sockets {
			if u := uses[s.Ino]; u.stream {
				c.kernel.SeedSocket(begin, tgid, s.FD, s.Ino, u.toSwitch)
			}
		}
	}
}

func (c *converter) task(tid uint32) Task {
	if tgid, ok := c.tgids[tid]; ok {
		return Task{TGID: tgid, TID: tid}
	}
	return Task{TGID: tid, TID: tid}
}

func (c *converter) record(r *strace.Record) {
	task, at := c.task(r.TID), event.Time(r.Time)
	switch r.Kind {
	case strace.Enter:
		c.enter(at, task, r.Call)
	case strace.Exit:
		c.exit(at, task, r.Call)
	case strace.Death:
		c.kernel.Exit(at, task, r.Status)
		delete(c.tgids, r.TID)
	}
}

func arg(call *strace.Call, i int) strace.Arg {
	if i < len(call.Args) {
		return call.Args[i]
	}
	return ""
}

// asked returns how many bytes a call asked for: its third argument.
func asked(call *strace.Call) int {
	n, _ := arg(call, 2).Int()
	return int(n)
}

func (c *converter) enter(at event.Time, task Task, call *strace.Call) {
	fd, isFD := arg(call, 0).FD()
	switch call.Name {
	case "read", "recvfrom":
		c.kernel.ReadEnter(at, task, fd.Num, asked(call))
	case "write", "sendto":
		c.kernel.WriteEnter(at, task, fd.Num, asked(call))
	case "accept", "accept4":
		c.kernel.AcceptEnter(at, task, fd.Num)
	case "connect":
		c.kernel.ConnectEnter(at, task, fd.Num)
	case "shutdown":
		c.kernel.Shutdown(at, task, fd.Num)
	case "close":
		c.kernel.Close(at, task, fd.Num)
	case "clone", "clone3", "fork", "vfork":
		c.fork(at, task, call)
	case "readv", "writev", "recvmsg", "sendmsg", "sendfile", "splice", "socketpair", "dup", "dup2", "dup3":
		if isFD && fd.Stream() || call.Name == "socketpair" {
			c.out.Unknown[call.Name]++
		}
	}
}

// fork tells of a new thread before its first system call, though the parent's
// return value, which names it, may stand later in the recording.
func (c *converter) fork(at event.Time, task Task, call *strace.Call) {
	if !call.Known || call.Return <= 0 {
		return
	}
	child := Task{TGID: uint32(call.Return), TID: uint32(call.Return)}
	for _, a := range call.Args {
		if strings.Contains(string(a), "CLONE_THREAD") {
			child.TGID = task.TGID
		}
	}
	c.tgids[child.TID] = child.TGID
	c.kernel.Fork(at, task, child)
}

func (c *converter) exit(at event.Time, task Task, call *strace.Call) {
	switch call.Name {
	case "read", "recvfrom":
		data, _, _ := arg(call, 1).Bytes()
		c.kernel.ReadExit(at, task, result(call), data)
	case "write", "sendto":
		data, _, _ := arg(call, 1).Bytes()
		c.kernel.WriteExit(at, task, result(call), data)
	case "accept", "accept4":
		fd, _ := call.Result.FD()
		n := int32(-1)
		if result(call) >= 0 {
			n = fd.Num
		}
		c.kernel.AcceptExit(at, task, n, fd.Ino, fd.Path)
	case "connect":
		fd, _ := arg(call, 0).FD()
		c.kernel.ConnectExit(at, task, result(call) == 0 || call.Errno == "EINPROGRESS", fd.Ino)
	case "socket":
		if fd, ok := call.Result.FD(); ok && fd.Stream() {
			c.kernel.Socket(at, task, fd.Num)
		}
	case "execve":
		if result(call) == 0 {
			file, _, _ := arg(call, 0).Bytes()
			c.kernel.Exec(at, task, path.Base(string(file)), "")
		}
	}
}

// result returns what a call returned; one that never did counts as failed.
func result(call *strace.Call) int64 {
	if !call.Known {
		return -1
	}
	return call.Return
}
