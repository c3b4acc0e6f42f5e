package correlate

import (
	"strconv"
	"syscall"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// processTable holds the processes that are activities, and how many
// connections each process has.
type processTable struct {
	byTGID map[uint32]*activity
	conns  map[uint32]int
}

func (t *processTable) init() {
	t.byTGID = make(map[uint32]*activity)
	t.conns = make(map[uint32]int)
}

func threadID(tid uint32) attribute.KeyValue { return attribute.Int64("thread.id", int64(tid)) }

// processForked makes an activity of a process whose maker has one. Other
// processes are nobody's work.
func (e *Engine) processForked(ev *event.Event) {
	if old := e.processes.byTGID[ev.ChildTGID]; old != nil {
		e.finish(old, ev.Time, endUnseen)
	}
	e.errands.del(ev.ChildTGID)
	parent, link := e.current(ev.TGID, ev.TID), LinkFork
	asked := parent == nil && ev.Component == event.Forkexecd
	if asked {
		parent, link = e.errandForked(ev), LinkSocket
	}
	if parent == nil {
		return
	}
	a := e.begin(processActivity, parent.component, ev.ChildTGID, ev.Time, parent, link)
	a.service, a.spanKind = parent.service, trace.SpanKindInternal
	a.name = parent.service // of a process that never calls exec
	if parent.kind == processActivity {
		a.name, a.program, a.also = parent.name, parent.program, parent.also
	}
	if asked {
		a.also, a.execed = event.Forkexecd, true // as after vfork_helper
	}
	a.cpu = -1
	a.maker = parent.ref()
	a.attrs = append(a.attrs, attribute.Int64("process.pid", int64(ev.ChildTGID)))
	e.processes.byTGID[ev.ChildTGID] = a
}

// handleExec names a process. One that calls exec twice, as a target of
// vfork_helper does, is what it became last.
func (e *Engine) handleExec(ev *event.Event) {
	if ev.Program == "" {
		return
	}
	a := e.processes.byTGID[ev.TGID]
	if a != nil && a.epoch != e.gaps.epoch { // its pid may be another's by now
		e.finish(a, ev.Time, eventsLost)
		a = nil
	}
	also := event.ComponentOf(ev.Program)
	if a == nil {
		if also == event.NoComponent && ev.Component != event.SMAPI && ev.Component != event.Forkexecd {
			return
		}
		a = e.orphan(ev)
	}
	switch {
	case also != event.NoComponent:
		a.also = also
	case !a.execed:
		a.also = event.NoComponent // it was its parent's
	}
	a.execed = true
	a.program, a.name = ev.Program, ev.Program
	e.stays(a)
	if ev.Operation != "" {
		e.scratch = append(append(append(e.scratch[:0], ev.Program...), ' '), ev.Operation...)
		a.name = e.strings.String(e.scratch)
	}
	a.set(attribute.String("process.executable.name", ev.Program))
	if ev.SR != "" {
		e.worksAt(a, []byte(ev.VDI))
		e.worksAt(a, []byte(ev.SR))
	}
	// A script makes a component of its process; what the script starts may
	// still carry that of the daemon in the kernel's table, which learns it later.
	if ev.Component == event.SMAPI && ev.Component != a.component {
		a.component, a.service = ev.Component, serviceOf(ev.Component)
	}
	if a.also == a.component {
		a.also = event.NoComponent
	}
}

// orphan makes an activity of a process that a component wants for its own sake,
// whoever made it: of its maker no more may be watched than its children.
func (e *Engine) orphan(ev *event.Event) *activity {
	a := e.begin(processActivity, ev.Component, ev.TGID, ev.Time, nil, LinkNone)
	a.spanKind, a.cpu = trace.SpanKindInternal, -1
	a.attrs = append(a.attrs, attribute.Int64("process.pid", int64(ev.TGID)))
	e.clock(a, ev.TGID)
	e.processes.byTGID[ev.TGID] = a
	return a
}

// processExited ends the process and whatever its threads, connections and
// tasks left behind.
func (e *Engine) processExited(ev *event.Event) {
	if a := e.processes.byTGID[ev.TGID]; a != nil {
		if ev.Flags&event.FlagNoCode == 0 {
			exit, signal := ev.Code>>8&0xff, ev.Code&0x7f
			a.set(attribute.Int64("process.exit.code", int64(exit)))
			switch {
			case signal != 0:
				a.err = syscall.Signal(signal).String()
			case exit != 0:
				a.err = e.strings.String(strconv.AppendInt(append(e.scratch[:0], "exit "...), int64(exit), 10))
			}
		}
		if ev.Flags&event.FlagNoCPU == 0 {
			a.cpu = max(ev.CPUTime, 0)
		}
		e.finish(a, ev.Time, "")
	}
	e.errands.del(ev.TGID)
	if e.processes.conns[ev.TGID] == 0 {
		return
	}
	for c := e.conns.lru.head; c != nil; {
		next := c.next
		if c.id.TGID == ev.TGID {
			e.dropConn(c, "process ended")
		}
		c = next
	}
	e.jobs.each(func(id jobID, _ *job) bool { return id.tgid != ev.TGID })
	e.dropPushes(ev.TGID)
	// threads whose exit was not seen: their tids may turn up again
	for th := e.threads.lru.head; th != nil; {
		next := th.next
		if th.tgid == ev.TGID {
			e.dropThread(th.tid, ev.Time, "process ended")
		}
		th = next
	}
}

func (e *Engine) processEnded(a *activity) {
	if e.processes.byTGID[a.tgid] == a {
		delete(e.processes.byTGID, a.tgid)
	}
}

// stays takes a process that serves its maker beyond the work it was made for
// out of what a tree waits for: the stunnel of a cached connection.
func (e *Engine) stays(a *activity) {
	if a.program != "stunnel" || !a.open || a.resident {
		return
	}
	a.resident = true
	t := a.tree.find()
	t.open--
	e.maybeFix(t)
}
