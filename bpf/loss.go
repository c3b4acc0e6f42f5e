package bpf

// lossCause is enum dt_loss_cause of include/dt_loss.h, followed by the causes
// that user space counts.
type lossCause uint32

const (
	lossOutput lossCause = iota
	lossConns
	lossGathers
	lossInflight
	lossEnter
	lossFault
	lossIovec
	lossReused
	lossStale
	lossTargets
	lossClones
	lossExecs
	lossForgot
	lossThreads
	lossFDs
	lossSwitch
	lossWakeup
	lossBios
	lossSame
	lossUnended
	lossPieces
	lossIocbs
	lossParts
	lossMany
	lossAnswers
	kernelCauses // DT_LOSS_CAUSES

	lossRecord lossCause = iota - 1
	lossEnded
	lossDisks
	lossSkipped
	numCauses
)

// lossNames are the causes as Losses shows them.
var lossNames = [numCauses]string{
	lossOutput:   "buffer full",
	lossConns:    "table of sockets full",
	lossGathers:  "table of gathered pieces full",
	lossInflight: "table of calls full",
	lossEnter:    "start of the call not seen",
	lossFault:    "memory of the process not readable",
	lossIovec:    "too many vectors in one call",
	lossReused:   "close of a socket not seen",
	lossStale:    "socket closed during a call",
	lossTargets:  "table of processes full",
	lossClones:   "table of clone calls full",
	lossExecs:    "table of exec calls full",
	lossForgot:   "close_range",
	lossThreads:  "table of threads full",
	lossFDs:      "table of devices full",
	lossSwitch:   "switch of a thread not seen",
	lossWakeup:   "wakeup of a thread not seen",
	lossBios:     "table of block I/O full",
	lossSame:     "too much I/O at one place at once",
	lossUnended:  "end of the I/O not seen",
	lossPieces:   "too many pieces in one request",
	lossIocbs:    "table of submitted I/O full",
	lossParts:    "table of requests full",
	lossMany:     "too much I/O submitted at once",
	lossAnswers:  "too many requests done at once",
	lossRecord:   "record malformed",
	lossEnded:    "socket ended with its process",
	lossDisks:    "table of disks full",
	lossSkipped:  "program skipped by the kernel",
}

// String returns the cause as Losses shows it.
func (c lossCause) String() string {
	if c < numCauses {
		return lossNames[c]
	}
	return "unknown"
}

// Loss counts what a probe could not record, by cause, since Load.
type Loss struct {
	Probe Probe
	Cause string
	Count uint64
}

// gaps are the causes after which something is missing that no record tells of.
// What else is lost is told by the records that were made, or concerns nothing
// but the socket that it was lost of.
var gaps = [...]struct {
	probe Probe
	cause lossCause
}{
	{Stream, lossOutput}, {Stream, lossGathers}, {Stream, lossInflight}, {Stream, lossFault}, {Stream, lossIovec},
	{Process, lossOutput}, {Process, lossTargets}, {Process, lossClones},
}

// Probe is a set of programs that are attached together.
type Probe uint8

// Probes.
const (
	Stream  Probe = 1 // sockets and log lines of targets
	Process Probe = 2 // fork, exec and exit of targets and their children
	Wait    Probe = 3 // how the threads of targets and their children spend their time
	Disk    Probe = 4 // block I/O of guests' disks; it makes no records
	Tapdisk Probe = 5 // requests of guests that tapdisks serve; needs Disk attached, too
)

const numProbes = 5

// String returns the name that losses and attachments are shown with.
func (p Probe) String() string {
	switch p {
	case Stream:
		return "stream"
	case Process:
		return "process"
	case Wait:
		return "wait"
	case Disk:
		return "disk"
	case Tapdisk:
		return "tapdisk"
	}
	return "unknown"
}

// probeOf returns the probe that makes records of a kind.
func probeOf(k Kind) Probe {
	switch k {
	case KindFork, KindExec, KindExit:
		return Process
	case KindTime:
		return Wait
	case KindRequest:
		return Tapdisk
	}
	return Stream
}
