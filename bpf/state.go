package bpf

// Mirrors of the map values of include/dt_maps.h and include/dt_stream.h that
// user space reads or writes; a test compares them with the BTF of the objects.

// Bits of target.State: DT_T_*.
const (
	targetCode = 1 << iota
	targetThreads
	targetGone
	targetExec
)

type target struct {
	Since     uint64
	Code      int32
	Component uint8
	Watch     Watch
	State     uint8
	_         uint8
}

type config struct {
	ForkChild    uint32
	ExecFilename uint32
	Wake         uint32
	SwitchState  uint32
	SwitchNext   uint32
	WakeupPid    uint32
	TaskPid      uint32
	_            uint32
	WaitNs       uint64
}

type connKey struct {
	TGID uint32
	FD   int32
}

// Bits of conn.Flags: DT_C_*.
const (
	connSwitch = 1 << iota
	connNew
	connPlain
	connEOF
	connBody
)

type conn struct {
	Born      uint64
	Ino       uint64
	BytesIn   uint64
	BytesOut  uint64
	Run       uint64
	BulkBytes uint64
	BulkFirst uint64
	BulkLast  uint64
	BulkCalls uint32
	BulkTid   uint32
	Dir       uint8
	Told      uint8
	Gather    uint8
	Flags     uint8
	Component uint8
	_         [3]uint8
}

// Values of inflight.Op: enum dt_op.
const (
	opNone uint8 = iota
	opRead
	opWrite
	opReadv
	opWritev
	opLog
	opLogv
	opAccept
)

type inflight struct {
	First     uint64
	Buf       uint64
	Len       uint64
	Born      uint64
	Msg       uint64
	FD        int32
	NR        int32
	Op        uint8
	Component uint8
	Noenter   uint8
	_         [5]uint8
}

// thread mirrors struct dt_thread.
type thread struct {
	TimeRec // in the making
	Mark    uint64
	Woken   uint64
	Hyper   uint64
	Queued  uint64
	Held    uint64
	Arg     [2]uint64
	Call    int32
	Off     uint8
	State   uint8
	Opening uint8
	_       uint8
}

// call mirrors struct dt_call.
type call struct{ Wait, Enter uint8 }

// Watch says what is recorded of a target.
type Watch uint8

// Bits of Watch.
const (
	WatchStream  Watch = 1 << iota // its known stream sockets
	WatchLog                       // its datagrams to the system log
	WatchProcess                   // fork, exec and exit; inherited by children, without the bits above
	WatchWait                      // how its threads spend their time; inherited by children that are watched
)
