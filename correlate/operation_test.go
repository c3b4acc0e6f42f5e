package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

const (
	vm     = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"
	start  = `["VM_start",["` + vm + `",false]]`
	tagged = "VM.start_on R:07432559b308"
)

func (s *script) queued(tid, worker uint32, op string) {
	s.log(xenopsd, tid, "queue", "Xapi_work_queues", "Queue.push "+op+" onto "+vm+":[  ]")
	if worker != 0 {
		s.log(xenopsd, worker, "", "Xapi_work_queues", "Queue.pop returned "+op)
	}
}

func (s *script) started(tid uint32, n int, tag, op string) event.Time {
	return s.log(xenopsd, tid, tag, "xenops_server", fmt.Sprintf("Task %d reference %s: %s", n, tag, op))
}

func (s *script) performing(tid uint32, tag, atom string) event.Time {
	return s.log(xenopsd, tid, tag, "xenops_server", "Performing: "+atom)
}

func (s *script) signal(tid uint32, n int) event.Time {
	return s.log(xenopsd, tid, tagged, "xenops_server", fmt.Sprintf(`TASK.signal %d = ["Pending",0.2]`, n))
}

func (s *script) completed(tid uint32, n int) event.Time {
	return s.log(xenopsd, tid, tagged, "task_server", fmt.Sprintf("Task %d completed; duration = 0", n))
}

// begun is an RPC VM.start on thread 210 of xenopsd.
func begun(t *testing.T) *script {
	s := newScript(t)
	s.openSwitch()
	s.ask(110, "VM.start", tagged)
	s.number(110, 64)
	s.deliver(64, "VM.start", tagged)
	s.thread(xenopsd, 201, 210)
	return s
}

func TestOperation(t *testing.T) {
	for _, order := range []string{"answered first", "started first", "done first"} {
		t.Run(order, func(t *testing.T) {
			s := begun(t)
			s.queued(210, 220, start)
			if order == "answered first" {
				s.respond(64, 210, `"6"`)
				s.answered(64, `"6"`)
			}
			from := s.started(220, 6, tagged, start)
			if order == "started first" {
				s.respond(64, 210, `"6"`)
				s.answered(64, `"6"`)
			}
			hook := s.performing(220, tagged, `["VM_hook_script",["`+vm+`","VM_pre_start","none"]]`)
			s.signal(220, 6)
			hooked := s.signal(220, 6)
			s.performing(220, tagged, `["VM_create",["`+vm+`",[],[],false]]`)
			created := s.performing(220, tagged, `["Best_effort",["VM_pause","`+vm+`"]]`)
			to := s.completed(220, 6)
			if order == "done first" {
				qt.Check(t, qt.HasLen(s.spans, 0))
				s.respond(64, 210, `"6"`)
				s.answered(64, `"6"`)
			}
			s.under("VM.start", send+"VM.start", LinkQueue)
			s.under("VM_start", "VM.start", LinkTask)
			s.under("VM_hook_script", "VM_start", LinkThread)
			s.under("VM_create", "VM_start", LinkThread)
			s.under("Best_effort (VM_pause)", "VM_start", LinkThread)
			op := s.span("VM_start")
			qt.Check(t, qt.Equals(op.Start, int64(from)))
			qt.Check(t, qt.Equals(op.End, int64(to)))
			qt.Check(t, qt.Equals(op.Service, "xenopsd"))
			qt.Check(t, qt.Equals(attr(op, "xs.xapi.task.id"), "R:07432559b308"))
			qt.Check(t, qt.Equals(attr(op, "dt.vm.uuid"), vm))
			qt.Check(t, qt.Equals(s.span("VM_hook_script").Start, int64(hook)))
			qt.Check(t, qt.Equals(s.span("VM_hook_script").End, int64(hooked)))
			qt.Check(t, qt.Equals(s.span("VM_create").End, int64(created)))
			s.wait(time.Minute)
			qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
			qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
		})
	}
}

func TestOperationLinks(t *testing.T) {
	t.Run("on the RPC's thread", func(t *testing.T) {
		s := begun(t)
		s.started(210, 5, tagged+`\x0A{"traceparent":"`+native+`","baggage":[]}`, `["Atomic",["VM_import_metadata",["`+vm+`",{"vusbs":[]}]]]`)
		s.completed(210, 5)
		s.respond(64, 210, `"5"`)
		s.answered(64, `"5"`)
		s.under("Atomic (VM_import_metadata)", "VM.start", LinkThread)
		qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
	})
	t.Run("the RPC waits for it", func(t *testing.T) {
		s := begun(t)
		s.queued(210, 220, start)
		s.started(220, 5, tagged, start)
		s.completed(220, 5)
		s.respond(64, 210, `null`)
		s.answered(64, `null`)
		s.under("VM_start", "VM.start", LinkQueue)
	})
	t.Run("the answer is not seen", func(t *testing.T) {
		s := begun(t)
		s.queued(210, 220, start)
		s.started(220, 5, tagged, start)
		s.completed(220, 5)
		s.wait(3 * time.Second)
		s.drain()
		s.under("VM_start", "VM.start", LinkQueue)
	})
	t.Run("pops in the order of pushes", func(t *testing.T) {
		s := begun(t)
		s.queued(210, 0, start)
		s.ask(111, "VM.again", "VM.again R:aaaaaaaaaaaa")
		s.number(111, 65)
		s.deliver(65, "VM.again", "VM.again R:aaaaaaaaaaaa")
		s.thread(xenopsd, 201, 211)
		s.queued(211, 220, start)
		s.started(220, 5, tagged, start)
		s.log(xenopsd, 221, "", "Xapi_work_queues", "Queue.pop returned "+start)
		s.log(xenopsd, 221, "VM.again R:aaaaaaaaaaaa", "xenops_server", "Task 6 reference VM.again R:aaaaaaaaaaaa: "+`["VM_poweroff",["`+vm+`",[]]]`)
		s.respond(64, 210, "null")
		s.respond(65, 211, "null")
		s.drain()
		s.under("VM_start", "VM.start", LinkQueue)
		s.under("VM_poweroff", "VM.again", LinkQueue)
	})
	t.Run("task of another caller", func(t *testing.T) {
		s := begun(t)
		s.queued(210, 220, start)
		s.respond(64, 210, `"5"`)
		s.started(220, 5, "VM.start_on R:ffffffffffff", start)
		s.completed(220, 5)
		s.wait(3 * time.Second)
		s.drain()
		s.root("VM_start")
		qt.Check(t, qt.Not(qt.Equals(s.e.Stats().Conflicts, 0)))
	})
	t.Run("tag", func(t *testing.T) {
		s := newScript(t)
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on")
		s.log(xapi, 110, tagged, "x", "y")
		s.started(220, 5, tagged, start)
		s.completed(220, 5)
		s.wait(3 * time.Second)
		s.drain()
		s.under("VM_start", "VM.start_on", LinkTask)
	})
	t.Run("background", func(t *testing.T) {
		s := newScript(t)
		s.started(220, 5, "xenops events D:8d0890bd8862", start)
		s.completed(220, 5)
		s.wait(3 * time.Second)
		s.root("VM_start")
	})
}

// Parallel atoms run on other workers, at any depth.
func TestParallelAtoms(t *testing.T) {
	s := begun(t)
	s.queued(210, 220, start)
	s.started(220, 6, tagged, start)
	s.respond(64, 210, `"6"`)
	s.answered(64, `"6"`)
	s.performing(220, tagged, `["Parallel",["`+vm+`","VBD.plug",[["VBD_plug",["`+vm+`","a"]],["VBD_plug",["`+vm+`","b"]]]]]`)
	for i, disk := range []string{"xvda", "xvdb"} {
		tag := fmt.Sprintf("Parallel:task=6.atoms=2.(VBD.plug VM=%s)", vm)
		worker := uint32(230 + i)
		op := fmt.Sprintf(`["Atomic",["Nested_parallel",["%s","%s",[["VBD_attach",["%s","%s"]]]]]]`, vm, disk, vm, disk)
		s.queued(220, worker, op)
		s.started(worker, 7+i, tag, op)
	}
	s.performing(230, "Parallel:task=6", `["VBD_set_active",["`+vm+`",true]]`)
	inner := fmt.Sprintf(`["Atomic",["VBD_attach",["%s","xvda"]]]`, vm)
	s.queued(230, 240, inner)
	s.started(240, 9, "Nested_parallel:task=7.atoms=1.(x VM="+vm+")", inner)
	s.fork(xenopsd, 240, 300)
	s.exec(xenopsd, 300, "vfork_helper", "")
	s.exec(xenopsd, 300, "tap-ctl", "")
	s.exit(xenopsd, 300, 0)
	s.completed(240, 9)
	s.completed(231, 8)
	s.completed(230, 7)
	s.completed(220, 6)
	var parallel *Span
	for _, sp := range s.spans {
		if len(sp.Name) > 9 && sp.Name[:9] == "Parallel " {
			parallel = sp
		}
	}
	s.under("VM_start", "VM.start", LinkTask)
	qt.Assert(t, qt.IsNotNil(parallel))
	qt.Check(t, qt.Equals(parallel.ParentID, s.span("VM_start").SpanID))
	children := 0
	for _, sp := range s.spans {
		if sp.ParentID == parallel.SpanID {
			qt.Check(t, qt.Equals(sp.Link, LinkTask))
			children++
		}
	}
	qt.Check(t, qt.Equals(children, 2))
	s.under("Atomic (VBD_attach)", "VBD_set_active", LinkTask)
	s.under("tap-ctl", "Atomic (VBD_attach)", LinkFork)
	s.wait(time.Minute)
	qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
}

func TestOperationFails(t *testing.T) {
	s := begun(t)
	s.queued(210, 220, start)
	s.started(220, 6, tagged, start)
	s.respond(64, 210, `"6"`)
	s.answered(64, `"6"`)
	s.performing(220, tagged, `["VM_create",["`+vm+`",[],[],false]]`)
	s.signal(220, 6)
	at := s.log(xenopsd, 220, tagged, "task_server", "Task 6 failed; exception = Xenops_interface.Failure")
	qt.Check(t, qt.Not(qt.Equals(s.span("VM_start").Error, "")))
	qt.Check(t, qt.Equals(s.span("VM_create").Error, "failed"))
	qt.Check(t, qt.Equals(s.span("VM_create").End, int64(at)))
}

// Task numbers start at 0 again in another xenopsd.
func TestOperationNumbersReused(t *testing.T) {
	s := begun(t)
	s.queued(210, 220, start)
	s.respond(64, 210, `"6"`) // never starts
	s.exit(xenopsd, xenopsd.tgid, 15)
	qt.Check(t, qt.Equals(s.e.Stats().Conns, 2))
	s.started(220, 6, tagged, start) // of the new process, with the old one's pid
	s.completed(220, 6)
	s.wait(3 * time.Second)
	s.drain()
	s.root("VM_start")
}

// A worker whose last task's end was lost starts the next one afresh.
func TestOperationEndUnseen(t *testing.T) {
	s := begun(t)
	s.queued(210, 220, start)
	s.started(220, 6, tagged, start)
	s.performing(220, tagged, `["VM_create",["`+vm+`",[],[],false]]`)
	s.respond(64, 210, `"6"`)
	next := `["VM_poweroff",["` + vm + `",[]]]`
	s.queued(210, 220, next)
	s.started(220, 7, tagged, next)
	s.completed(220, 7)
	s.wait(3 * time.Second)
	s.drain()
	qt.Check(t, qt.Equals(s.span("VM_start").Incomplete, endUnseen))
	qt.Check(t, qt.Equals(s.span("VM_create").Incomplete, endUnseen))
	qt.Check(t, qt.Equals(s.span("VM_poweroff").Incomplete, ""))
	qt.Check(t, qt.Not(qt.Equals(s.span("VM_poweroff").ParentID, s.span("VM_start").SpanID)))
}
