// Package event holds what the probes saw, as plain values.
//
// It needs nothing but the standard library: correlate and its tests use it
// on any system.
package event

import "net/netip"

// Time is a reading of the kernel's CLOCK_MONOTONIC in nanoseconds, the clock
// of bpf_ktime_get_ns. It stops while the host is suspended.
type Time int64

// Kind says which fields of an Event are set. The numbers are those of enum
// dt_kind in bpf/include/dt_event.h.
type Kind uint8

// Kinds of events.
const (
	KindData  Kind = 1 // bytes of one direction of one socket: Conn, Dir, First, Last, Bytes, Calls, Head, Tail
	KindLog   Kind = 2 // one datagram to the system log: Bytes, Head
	KindOpen  Kind = 3 // a socket that became known: Conn, How, Listener, Peer
	KindClose Kind = 4 // a known socket closed by its process: Conn
	KindFork  Kind = 5 // a new thread (FlagThread) or process, made by TID: ChildTGID, ChildTID
	KindExec  Kind = 6 // a successful execve: Program, Operation, SR, VDI
	KindExit  Kind = 7 // end of a thread, of the process with FlagLeader: Code, CPUTime
	KindLost  Kind = 8 // events that never arrived, made from First to Last: Count, 0 if not known; made in user space
	KindTime  Kind = 9 // how thread TID spent the stretch from First to Last: Spent, and for a long wait Wait, Runnable, Syscall, Detail

	KindRequest Kind = 10 // a guest's disk request that process TGID, a tapdisk, served from First to Last: Request, Disk
)

// Flags qualify an Event. The bits are those of DT_F_* in
// bpf/include/dt_event.h.
type Flags uint16

// Flags of events.
const (
	FlagCut     Flags = 1 << iota // bytes were moved that Head and Tail do not hold
	FlagMore                      // goes on a message whose start an earlier event held
	FlagNoEnter                   // the start of the system call was not seen
	FlagEOF                       // KindData: the other side closed
	FlagThread                    // KindFork: a thread of the same process
	FlagLeader                    // KindExit: the thread group leader
	FlagNoCode                    // KindExit: Code is not known
	FlagNoCPU                     // KindExit: CPUTime is not known
)

// Dir is the direction of a transfer as its process sees it.
type Dir uint8

// Directions.
const (
	In  Dir = 1 // read by the process
	Out Dir = 2 // written by the process
)

// How a socket became known.
type How uint8

// Ways in which a socket becomes known.
const (
	Seeded    How = 1 // open before the probe was; found in /proc
	Accepted  How = 2
	Connected How = 3
	Paired    How = 4 // socketpair
	Passed    How = 5 // received by SCM_RIGHTS
)

// Conn is the identity of one open socket of one process. fd numbers are
// reused within microseconds; Born tells the users of a number apart.
type Conn struct {
	TGID uint32
	FD   int32
	Born Time // when the probe first knew it
}

// Event is one thing that a probe saw. Head and Tail belong to whoever hands
// the event over and may change once that call has returned; a receiver that
// keeps them copies them. Everything in an Event is redacted already: see
// package redact.
type Event struct {
	Kind      Kind
	Component Component // of the process TGID
	Flags     Flags
	CPU       uint16
	Dir       Dir
	How       How
	TGID      uint32
	TID       uint32
	Time      Time // when the record was made; events are in this order within a CPU

	Conn  Conn
	Ino   uint64 // of the socket, 0 if not known
	First Time   // read: the first byte was there; write: the first call began
	Last  Time   // end of the last call
	Bytes uint64 // moved in all; Head and Tail may hold less
	Calls uint32 // system calls gathered in this event
	Head  []byte // the first bytes moved
	Tail  []byte // the last bytes moved, when Head does not reach them

	Listener string         // KindOpen: path or address of the accepting socket, "" if not known
	Peer     netip.AddrPort // KindOpen: of a TCP socket
	PeerIno  uint64         // KindOpen: inode of the socket at the other end of an accepted unix socket, 0 if not known
	PeerTGID uint32         // KindOpen: the process that connected it, 0 if not known

	ChildTGID uint32
	ChildTID  uint32

	Program   string // KindExec: base name of the file executed; of the script for an interpreter run as "<interpreter> -m observer <script>"
	Operation string // KindExec: what the program was asked to do when its arguments say it: the SM call's method name

	// KindExec: uuids of the storage repository and of the disk image that the program
	// is to work at, when its arguments name them.
	SR  string
	VDI string

	Code    int32 // KindExit: as wait(2) gives it: exit status << 8 | signal
	CPUTime int64 // KindExit: ns on a CPU, of the thread, or of the process with FlagLeader

	Count uint64 // KindLost

	// KindTime. The stretches of a thread do not overlap and come in order; one ends
	// before each event of the thread with which a span can end: bytes written, a log
	// line, an exit. A wait of at least the probe's
	// threshold is a stretch of its own, told when it has ended.
	Spent    Times  // what of it was spent how; less than the stretch where something was not seen
	Wait     Spent  // the long wait that the stretch is, OnCPU if it is none
	Runnable Time   // Wait: when it could run again; Last is when it did
	Syscall  int32  // Wait: number of the system call it was in, -1 if in none or not known
	Detail   uint64 // Wait: Hypercall: number, and domctl's command << 32; else 0

	Request Request    // KindRequest
	Disk    *GuestDisk // KindRequest: nil if it is not known whose it is
}
