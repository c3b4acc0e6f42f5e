//go:build linux

package bpf

// Watch says what is recorded of a target.
type Watch uint8

// Bits of Watch.
const (
	WatchStream  Watch = 1 << iota // its known stream sockets
	WatchLog                       // its datagrams to the system log
	WatchProcess                   // fork, exec and exit; inherited by children, without the other bits
)

// Target is how a process is watched.
type Target struct {
	Component uint8 // event.Component, copied into every record
	Watch     Watch
}

// Attachment is one program attached to one hook.
type Attachment struct {
	Probe   Probe
	Program string // as bpftool prog shows it
	Hook    string // "syscalls:sys_enter_read"
	Way     string // "tracepoint"
}

// Record is one thing that Read returned: a record of the wire contract in Raw,
// or a number of records that CPU lost because its buffer was full, or both.
type Record struct {
	CPU  int
	Raw  []byte // starts with a Hdr and is Hdr.Size long; valid until the next Read; nil if there is none
	Lost uint64 // records lost in user space's perf buffer before this one; 0 in the modern tier, see Losses
}

// Loss counts what a probe could not record, by cause, since Load.
type Loss struct {
	Probe Probe
	Cause string
	Count uint64
}

// Session is a set of loaded programs. Its methods may be called by several
// goroutines at once, except Read.
type Session struct{}

// Attach attaches the programs of a probe. Attaching an attached probe does
// nothing. Attach(Stream) begins with no known socket: seed afterwards.
func (s *Session) Attach(p Probe) error { return errUnfinished }

// Detach detaches a probe; records already made can still be read.
func (s *Session) Detach(p Probe) error { return errUnfinished }

// Attached lists what is attached now.
func (s *Session) Attached() []Attachment { return nil }

// SetTarget makes a process a target or changes how it is watched. Its sockets
// are not known yet: see SeedSocket.
func (s *Session) SetTarget(tgid uint32, t Target) error { return errUnfinished }

// DeleteTarget forgets a process and its sockets. Forgetting what is not known
// is no error.
func (s *Session) DeleteTarget(tgid uint32) error { return errUnfinished }

// Targets returns the processes watched now, with the children that the kernel
// added.
func (s *Session) Targets() (map[uint32]Target, error) { return nil, errUnfinished }

// SeedSocket makes an open stream socket of a target known. A socket that the
// kernel side knows already, or that is no longer fd of tgid, is left alone.
// switchSocket says that its peer is message-switch. The socket's KindOpen
// record comes with its first use. Call it after Attach(Stream) and SetTarget.
func (s *Session) SeedSocket(tgid uint32, fd int32, ino uint64, switchSocket bool) error {
	return errUnfinished
}

// Read waits for the next record. One goroutine may call it. After Close it
// returns what is left in the buffers, then os.ErrClosed.
func (s *Session) Read(r *Record) error { return errUnfinished }

// Losses returns the counters of all probes and causes that are not zero.
func (s *Session) Losses() []Loss { return nil }

// Close detaches everything, ends Read and frees the maps. It may be called
// twice.
func (s *Session) Close() error { return nil }
