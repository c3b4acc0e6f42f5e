package logline

import "github.com/xenserver/dtagent/correlate/wire"

// Kind is a kind of line that begins or ends a piece of work.
type Kind uint8

// Kinds of anchor.
const (
	NoKind        Kind = iota
	AsyncThread        // xapi: "spawning a new thread to handle the current task"; on the connection's thread, before the clone. Task: from the tag
	TaskCreated        // xapi: "task <label> R:… (uuid:…) created (trackid=…) by task <parent>", "task … created by task …". Label, Task, Parent
	QueuePush          // xenopsd: "Queue.push <op> onto <queue>:[ … ]". Operation, Queue
	QueuePop           // xenopsd: "Queue.pop returned <op>"; on the worker's thread. Operation
	TaskStarted        // xenopsd: "Task <id> reference <tag>: <op>"; on the worker's thread. Xenops, Tag, Label, Task, Operation
	Performing         // xenopsd: "Performing: <atom>". Operation
	TaskCompleted      // xenopsd: "Task <id> completed; duration = n". Xenops
	TaskFailed         // xenopsd: "Task <id> failed; <reason>". Xenops, Reason
)

// Anchor is what such a line says. Its slices are parts of the line.
type Anchor struct {
	Kind      Kind
	Label     []byte      // label of Task
	Task      wire.TaskID // XAPI's task
	Parent    wire.TaskID // XAPI's task that made Task
	Xenops    uint64      // xenopsd's own number of the task
	Tag       []byte      // TaskStarted: the tag, escaped as it is in the log
	Operation []byte      // JSON of an operation or atom: see AppendName; may be cut
	Queue     []byte      // QueuePush: the queue's tag, the VM's UUID for most; nil if cut
	Reason    []byte      // TaskFailed
}

// Anchor reads the line's message. It is false for all other lines.
func (l *Line) Anchor() (Anchor, bool) { return Anchor{}, false }
