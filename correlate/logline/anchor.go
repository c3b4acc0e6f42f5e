package logline

import (
	"bytes"

	"github.com/xenserver/dtagent/correlate/internal/cutjson"
	"github.com/xenserver/dtagent/correlate/wire"
)

// Kind is a kind of line that begins or ends a piece of work.
type Kind uint8

// Kinds of anchor.
const (
	NoKind        Kind = iota
	AsyncThread        // xapi: "spawning a new thread to handle the current task"; on the connection's thread, before the clone. Label, Task: of the line's tag
	TaskCreated        // xapi: "task <label> R:… (uuid:…) created (trackid=…) by task <parent>", "task … created by task …". Label, Task, Parent
	TaskForwarded      // xapi: "task <label> R:… forwarded (trackid=…)"; another host's task goes on here. Label, Task
	QueuePush          // xenopsd: "Queue.push <op> onto <queue>:[ … ]". Operation, Queue
	QueuePop           // xenopsd: "Queue.pop returned <op>"; on the worker's thread. Operation
	TaskStarted        // xenopsd: "Task <id> reference <tag>: <op>"; on the worker's thread. Xenops, Tag, Label, Task, Operation
	Performing         // xenopsd: "Performing: <atom>". Operation
	TaskCompleted      // xenopsd: "Task <id> completed; duration = n". Xenops
	TaskFailed         // xenopsd: "Task <id> failed; <reason>". Xenops, Reason
)

var kindNames = [...]string{
	"none", "async thread", "task created", "task forwarded", "queue push", "queue pop",
	"task started", "performing", "task completed", "task failed",
}

// String returns the kind's name.
func (k Kind) String() string { return kindNames[k] }

// Anchor is what such a line says. Its slices are parts of the line; what is
// behind a cut is nil.
type Anchor struct {
	Kind      Kind
	Label     []byte      // label of Task
	Task      wire.TaskID // XAPI's task
	Parent    wire.TaskID // XAPI's task that made Task
	Xenops    uint64      // xenopsd's own number of the task
	Tag       []byte      // TaskStarted: the tag, escaped as it is in the log
	Operation []byte      // JSON of an operation or atom: see AppendName; may be cut
	Queue     []byte      // QueuePush: the queue's tag, the VM's UUID for most
	Reason    []byte      // TaskFailed
}

// Anchor reads the line's message. It is false for all other lines. The module
// is not looked at: versions differ in it.
func (l *Line) Anchor() (a Anchor, ok bool) {
	m := l.Message
	if len(m) < len("Task 0") {
		return a, false
	}
	switch m[0] {
	case 's':
		if m, ok = bytes.CutPrefix(m, []byte("spawning a new thread to handle the current task")); ok && isTrackID(m) {
			a.Kind = AsyncThread
			a.Label, a.Task = l.Task()
		}
	case 't':
		if m, ok = bytes.CutPrefix(m, []byte("task ")); ok {
			a.xapiTask(m)
		}
	case 'Q':
		if op, ok := bytes.CutPrefix(m, []byte("Queue.push ")); ok {
			a.Kind = QueuePush
			a.Operation, m = splitOperation(op)
			a.queue(m)
		} else if op, ok := bytes.CutPrefix(m, []byte("Queue.pop returned ")); ok {
			a.Kind = QueuePop
			a.Operation, _ = splitOperation(op)
		}
	case 'P':
		if op, ok := bytes.CutPrefix(m, []byte("Performing: ")); ok {
			a.Kind = Performing
			a.Operation, _ = splitOperation(op)
		}
	case 'T':
		if m, ok = bytes.CutPrefix(m, []byte("Task ")); ok {
			a.xenopsTask(m)
		}
	}
	return a, a.Kind != NoKind
}

// xapiTask reads what follows "task ".
func (a *Anchor) xapiTask(m []byte) {
	if i := bytes.LastIndex(m, []byte(" created")); i >= 0 {
		j := bytes.LastIndex(m, []byte(" by task "))
		if j < i {
			return // cut, or another line
		}
		if a.Parent = wire.ParseTaskID(m[j+len(" by task "):]); a.Parent.IsZero() {
			return
		}
		tag := m[:i]
		if j = bytes.LastIndex(tag, []byte(" (uuid:")); j >= 0 {
			tag = tag[:j]
		}
		a.Kind = TaskCreated
		a.Label, a.Task = wire.SplitTag(firstLine(tag))
		return
	}
	if i := bytes.LastIndex(m, []byte(" forwarded")); i >= 0 {
		if isTrackID(m[i+len(" forwarded"):]) {
			a.Kind = TaskForwarded
			a.Label, a.Task = wire.SplitTag(firstLine(m[:i]))
		}
	}
}

// isTrackID tells whether the rest of a message is nothing, or the session's
// " (trackid=…)" and no more.
func isTrackID(m []byte) bool {
	id, ok := bytes.CutPrefix(m, []byte(" (trackid="))
	return len(m) == 0 || ok && len(id) > 0 && bytes.IndexByte(id, ')') == len(id)-1
}

// xenopsTask reads what follows "Task ".
func (a *Anchor) xenopsTask(m []byte) {
	n, m, ok := number(m)
	if !ok {
		return
	}
	if ref, ok := bytes.CutPrefix(m, []byte(" reference ")); ok {
		tag, op := ref, []byte(nil)
		if i := bytes.Index(ref, []byte(`: [`)); i >= 0 {
			tag, op = ref[:i], ref[i+len(": "):]
		}
		a.Kind, a.Xenops, a.Tag = TaskStarted, n, tag
		a.Label, a.Task = wire.SplitTag(firstLine(tag))
		a.Operation, _ = splitOperation(op)
		return
	}
	if bytes.HasPrefix(m, []byte(" completed; ")) {
		a.Kind, a.Xenops = TaskCompleted, n
		return
	}
	if reason, ok := bytes.CutPrefix(m, []byte(" failed; ")); ok {
		a.Kind, a.Xenops, a.Reason = TaskFailed, n, reason
	}
}

// splitOperation splits an operation's JSON from what follows it.
func splitOperation(m []byte) (op, rest []byte) {
	c := cutjson.AtLogged(m)
	if c.Peek() != '[' && c.Peek() != '"' {
		return nil, nil
	}
	if !c.Skip() {
		return m, nil // cut
	}
	return m[:c.Pos()], c.Rest()
}

// queue reads " onto [aliased |redirected ]<queue>:[ … ]".
func (a *Anchor) queue(m []byte) {
	m, ok := bytes.CutPrefix(m, []byte(" onto "))
	if !ok {
		return
	}
	m = bytes.TrimPrefix(m, []byte("aliased "))
	m = bytes.TrimPrefix(m, []byte("redirected "))
	if i := bytes.LastIndex(m, []byte(":[ ")); i >= 0 {
		// A queue's tag may hold ':' but the list that follows holds works.
		if j := bytes.Index(m, []byte(":[ ")); j < i {
			i = j
		}
		a.Queue = m[:i]
	}
}
