package event

// Spent is a way for a thread to spend its time. At every moment a thread is in
// exactly one. The numbers are those of enum dt_spent in bpf/include/dt_event.h.
type Spent uint8

// Ways to spend time. All but OnCPU and RunQueue are waits.
const (
	OnCPU      Spent = iota // running, hypercalls left out
	RunQueue                // could run, and has no CPU
	Hypercall               // in the hypervisor
	Xenstore                // for xenstored
	EventChan               // for an event channel
	Lock                    // for a futex: OCaml's master lock, mutexes, conditions
	Child                   // for a child process
	Fsync                   // for a file to be on disk
	Flock                   // for a lock on a file
	FileIO                  // for a file or block device
	Connecting              // for a connection to be made
	Network                 // for bytes from or to a socket
	Sleeping                // for a time to come
	Polling                 // for one of several descriptors: select, poll, epoll
	Pipe                    // for bytes from or to a pipe
	OtherWait               // in another system call, or for memory
	NumSpent
)

var spentNames = [NumSpent]string{
	"cpu", "runq", "hypercall", "xenstore", "evtchn", "lock", "child", "fsync", "flock",
	"file", "connect", "network", "sleep", "poll", "pipe", "other",
}

// String returns the word that stands in dt.time.<word>_us.
func (s Spent) String() string {
	if s < NumSpent {
		return spentNames[s]
	}
	return "unknown"
}

// Wait tells whether s is a wait that can be a span of its own.
func (s Spent) Wait() bool { return s >= Hypercall && s < NumSpent }

// Times is how a stretch of time was spent, in ns.
type Times [NumSpent]int64

// Total is the sum of t.
func (t *Times) Total() (ns int64) {
	for _, n := range t {
		ns += n
	}
	return ns
}
