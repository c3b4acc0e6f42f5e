package bpf

// WireVersion is DT_WIRE_VERSION of include/dt_event.h.
const WireVersion = 1

// Kind is the type of a record: enum dt_kind.
type Kind uint16

// Kinds of records.
const (
	KindData  Kind = 1
	KindLog   Kind = 2
	KindOpen  Kind = 3
	KindClose Kind = 4
	KindFork  Kind = 5
	KindExec  Kind = 6
	KindExit  Kind = 7
	KindTime  Kind = 9

	KindRequest Kind = 10
)

// Bits of Hdr.Flags: DT_F_*.
const (
	FlagCut     = 1 << iota // bytes were moved that head and tail do not hold
	FlagMore                // goes on a message whose start an earlier record held
	FlagNoEnter             // the start of the system call was not seen
	FlagEOF                 // KindData: the other side closed
	FlagThread              // KindFork: a thread of the same process
	FlagLeader              // KindExit: the thread group leader
	FlagNoCode              // KindExit: Code is not known
	FlagNoCPU               // KindExit: CPUNs is not known
)

// Values of DataRec.Dir: enum dt_dir.
const (
	DirIn  = 1
	DirOut = 2
)

// Values of OpenRec.How: enum dt_how.
const (
	HowSeeded    = 1
	HowAccepted  = 2
	HowConnected = 3
	HowPaired    = 4
	HowPassed    = 5
)

// Sizes of the strings of ExecRec.
const (
	ExecArgs   = 6
	ExecArgLen = 128
)

// The structs below mirror include/dt_event.h field by field; a test compares
// them with the BTF of both objects. All numbers are little endian, times are
// CLOCK_MONOTONIC in nanoseconds.

// Hdr starts every record: struct dt_hdr.
type Hdr struct {
	Ktime     uint64
	TGID      uint32
	TID       uint32
	Size      uint32 // of the whole record, payload included
	Seq       uint32 // counts the records of this CPU and probe
	Kind      Kind
	Flags     uint16
	CPU       uint16
	Component uint8
	Version   uint8
}

// DataRec is followed by HeadLen bytes from the start of the bytes moved and
// TailLen from their end: struct dt_data.
type DataRec struct {
	Hdr
	Born    uint64
	Ino     uint64
	First   uint64
	Last    uint64
	Bytes   uint64
	FD      int32
	Calls   uint32
	HeadLen uint16
	TailLen uint16
	Dir     uint8
	_       [3]uint8
}

// LogRec is followed by HeadLen bytes: struct dt_log.
type LogRec struct {
	Hdr
	Bytes   uint32
	HeadLen uint16
	_       uint16
}

// OpenRec is struct dt_open.
type OpenRec struct {
	Hdr
	Born     uint64
	Ino      uint64
	FD       int32
	ListenFD int32
	How      uint16
	Family   uint16
	PeerPort uint16
	_        uint16
	Peer     [16]uint8 // of a unix socket: inode and tgid
}

// CloseRec is struct dt_close.
type CloseRec struct {
	Hdr
	Born     uint64
	BytesIn  uint64
	BytesOut uint64
	FD       int32
	_        uint32
}

// ForkRec is struct dt_fork; Hdr.TID is the thread that called clone.
type ForkRec struct {
	Hdr
	ChildTGID uint32
	ChildTID  uint32
}

// ExecRec is struct dt_exec; strings are NUL-padded.
type ExecRec struct {
	Hdr
	Comm     [16]uint8
	Filename [ExecArgLen]uint8
	Arg      [ExecArgs][ExecArgLen]uint8
}

// ExitRec is struct dt_exit.
type ExitRec struct {
	Hdr
	CPUNs uint64
	Code  int32
	_     uint32
}

// TimeRec is struct dt_time. The ways to spend time are numbered as event.Spent.
type TimeRec struct {
	Hdr
	First    uint64
	Last     uint64
	Spent    [16]uint64
	Runnable uint64
	Detail   uint64
	NR       int32
	Wait     uint8
	_        [3]uint8
}

// Bits of RequestRec.Flags: DT_R_*.
const (
	RequestWrite  = 1 << iota
	RequestSlow   // took longer than was asked for; else it is a sample
	RequestMerged // shares its I/O with other requests
	RequestFailed
	RequestUnsplit // no block request of it was seen
)

// RequestRec is struct dt_request. The layers are numbered as event.Layer.
type RequestRec struct {
	Hdr
	First  uint64
	Last   uint64
	Layer  [NumLayers]uint64
	Offset uint64
	Bytes  uint32
	IOs    uint16
	Flags  uint16
}
