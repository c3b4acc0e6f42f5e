package capture

import (
	"bytes"

	"github.com/xenserver/dtagent/probes/event"
)

// Limits of the kernel side, the same as in bpf/include/dt_stream.h.
const (
	smallRead  = 64       // a read that asks for no more is a small piece
	smallWrite = 256      // a write of no more is a small piece
	runBytes   = 1024     // small pieces gathered in one event
	headBytes  = 4096     // of a large piece
	headSwitch = 16384    // of a large piece on a connection to message-switch
	tailBytes  = 1024     // of a large piece
	bulkBytes  = 64 << 10 // of one direction without a turn, after which pieces are only counted
	logBytes   = 1024     // of a log line
)

// Task names the thread that makes a system call.
type Task struct {
	TGID uint32
	TID  uint32
}

// Watch says what is recorded of a target, as bpf.Watch does.
type Watch uint8

// Bits of Watch.
const (
	WatchStream Watch = 1 << iota
	WatchLog
	WatchProcess
)

// Kernel is an executable model of the kernel side: it is told of system calls
// as they begin and end and makes the events that the stream and process
// probes would make. It keeps no more of the bytes than they do. It is not
// for concurrent use.
type Kernel struct {
	emit    func(*event.Event)
	targets map[uint32]target
	conns   map[fdKey]*conn
	flights map[Task]flight

	Orphans int // ends of system calls whose start was not told
	Reused  int // sockets that became known under a number whose close was not told; what had been gathered is lost
	Stale   int // ends of calls whose socket was closed meanwhile
}

type target struct {
	component event.Component
	watch     Watch
}

type fdKey struct {
	tgid uint32
	fd   int32
}

// flight is a system call between its start and its end.
type flight struct {
	op    op
	fd    int32
	ask   int
	enter event.Time
	born  event.Time // of the socket at enter
}

// small tells whether a call that moved n bytes asked for no more than limit.
// (One that got more than it asked for is a recording gone wrong.)
func (f flight) small(n int64, limit int) bool { return f.ask <= limit && n <= int64(f.ask) }

type op uint8

const (
	opRead op = iota + 1
	opWrite
	opAccept
	opConnect
	opIgnored
)

// conn is what is kept of a socket.
type conn struct {
	id       event.Conn
	ino      uint64
	how      event.How
	listener string
	plain    bool      // made by socket and not connected: nothing is recorded
	fresh    bool      // seeded, its KindOpen was not made yet
	toSwitch bool      // the process talks to message-switch on it
	ended    bool      // its end was reported
	body     bool      // a header was read: a small piece that follows is not kept waiting
	dir      event.Dir // of the bytes moved last, 0 before the first
	told     event.Dir // of the last event
	since    uint64    // bytes moved since the direction turned

	bulk   piece
	run    piece
	runDir event.Dir // 0: nothing is gathered
	buf    [runBytes]byte
	bufLen int
}

// piece is an event in the making.
type piece struct {
	task        Task // of the first call
	first, last event.Time
	bytes       uint64
	calls       uint32
}

func (p *piece) add(task Task, first, last event.Time, n int) {
	if p.calls == 0 {
		p.task, p.first = task, first
	}
	p.last = last
	p.bytes += uint64(n)
	p.calls++
}

// NewKernel returns a model without targets. The events handed to emit may be
// kept; their times are those that the model is told.
func NewKernel(emit func(*event.Event)) *Kernel {
	return &Kernel{emit: emit, targets: make(map[uint32]target), conns: make(map[fdKey]*conn), flights: make(map[Task]flight)}
}

// SetTarget makes a process a target.
func (k *Kernel) SetTarget(tgid uint32, c event.Component, w Watch) {
	k.targets[tgid] = target{component: c, watch: w}
}

// SeedSocket makes a stream socket known that was open before. Its KindOpen
// comes with its first use.
func (k *Kernel) SeedSocket(at event.Time, tgid uint32, fd int32, ino uint64, toSwitch bool) {
	if k.targets[tgid].watch&WatchStream == 0 {
		return
	}
	if k.conns[fdKey{tgid, fd}] != nil {
		return
	}
	c := k.know(at, tgid, fd, event.Seeded)
	c.ino, c.toSwitch, c.fresh = ino, toSwitch, true
}

func (k *Kernel) know(at event.Time, tgid uint32, fd int32, how event.How) *conn {
	key := fdKey{tgid, fd}
	if old := k.conns[key]; old != nil && !old.plain {
		k.Reused++
	}
	c := &conn{id: event.Conn{TGID: tgid, FD: fd, Born: at}, how: how}
	k.conns[key] = c
	return c
}

func (k *Kernel) new(kind event.Kind, at event.Time, task Task) *event.Event {
	return &event.Event{Kind: kind, Component: k.targets[task.TGID].component, TGID: task.TGID, TID: task.TID, Time: at}
}

func (k *Kernel) announce(at event.Time, c *conn, task Task) {
	e := k.new(event.KindOpen, at, task)
	e.Conn, e.Ino, e.How, e.Listener = c.id, c.ino, c.how, c.listener
	k.emit(e)
}

// ReadEnter tells that a read of at most ask bytes begins.
func (k *Kernel) ReadEnter(at event.Time, task Task, fd int32, ask int) {
	k.enter(at, task, flight{op: opRead, fd: fd, ask: ask, enter: at}, event.In)
}

// WriteEnter tells that a write of ask bytes begins.
func (k *Kernel) WriteEnter(at event.Time, task Task, fd int32, ask int) {
	k.enter(at, task, flight{op: opWrite, fd: fd, ask: ask, enter: at}, event.Out)
}

func (k *Kernel) enter(at event.Time, task Task, f flight, dir event.Dir) {
	w := k.targets[task.TGID].watch
	if w&(WatchStream|WatchLog) == 0 {
		return
	}
	if c := k.conns[fdKey{task.TGID, f.fd}]; c != nil && w&WatchStream != 0 {
		if c.plain {
			k.flights[task] = flight{op: opIgnored}
			return
		}
		f.born = c.id.Born
		k.turn(at, c, dir)
	}
	k.flights[task] = f
}

// turn sends what waits if it went the other way.
func (k *Kernel) turn(at event.Time, c *conn, dir event.Dir) {
	if c.runDir != 0 && c.runDir != dir || c.bulk.calls > 0 && c.dir != dir {
		k.flush(at, c)
	}
}

// end takes the flight of a system call that ends.
func (k *Kernel) end(task Task, ops ...op) (flight, bool) {
	f, ok := k.flights[task]
	if k.targets[task.TGID].watch&(WatchStream|WatchLog) == 0 {
		return f, false
	}
	delete(k.flights, task)
	for _, o := range ops {
		if ok && f.op == o {
			return f, true
		}
	}
	if !ok || f.op != opIgnored {
		k.Orphans++
	}
	return f, false
}

// ReadExit tells that the read of the thread returned ret. data are the bytes
// read; those that are missing at its end were not recorded.
func (k *Kernel) ReadExit(at event.Time, task Task, ret int64, data []byte) {
	f, ok := k.end(task, opRead)
	if !ok || ret < 0 {
		return
	}
	c := k.socket(task, f, ret)
	switch {
	case c == nil:
	case ret > 0:
		data = data[:min(int64(len(data)), ret)]
		k.moved(at, c, task, event.In, at, int(ret), data, f.small(ret, smallRead))
	case f.ask > 0:
		k.eof(at, c, task)
	}
}

// WriteExit tells that the write of the thread returned ret. data are the
// bytes of the caller's buffer, of which ret were written.
func (k *Kernel) WriteExit(at event.Time, task Task, ret int64, data []byte) {
	f, ok := k.end(task, opWrite)
	if !ok || ret <= 0 {
		return
	}
	data = data[:min(int64(len(data)), ret)]
	if f.born == 0 {
		k.log(at, task, ret, data)
		return
	}
	if c := k.socket(task, f, ret); c != nil {
		k.moved(at, c, task, event.Out, f.enter, int(ret), data, f.small(ret, smallWrite))
	}
}

// socket returns the socket of a call that ends, nil if there is none any more.
func (k *Kernel) socket(task Task, f flight, ret int64) *conn {
	c := k.conns[fdKey{task.TGID, f.fd}]
	if c == nil || c.id.Born != f.born {
		if f.born != 0 && ret > 0 {
			k.Stale++
		}
		return nil
	}
	return c
}

func (k *Kernel) log(at event.Time, task Task, ret int64, data []byte) {
	if k.targets[task.TGID].watch&WatchLog == 0 || len(data) < 2 || data[0] != '<' || data[1] < '0' || data[1] > '9' {
		return
	}
	e := k.new(event.KindLog, at, task)
	e.Bytes = uint64(ret)
	e.Head = bytes.Clone(data[:min(len(data), logBytes)])
	if e.Bytes > uint64(len(e.Head)) {
		e.Flags |= event.FlagCut
	}
	k.emit(e)
}

// moved takes n bytes of one direction.
func (k *Kernel) moved(at event.Time, c *conn, task Task, dir event.Dir, first event.Time, n int, data []byte, small bool) {
	k.used(at, c, task)
	k.turn(at, c, dir) // another thread may have moved bytes the other way meanwhile
	if dir == event.Out && c.dir != dir && switchRequest(data) {
		c.toSwitch = true
	}
	if c.dir != dir {
		c.dir, c.since, c.body = dir, 0, false
	}
	before := c.since
	c.since += uint64(n)
	switch {
	case small:
		k.gather(at, c, task, first, n, data)
	case before < bulkBytes:
		k.flush(at, c)
		e := k.new(event.KindData, at, task)
		e.First, e.Last, e.Bytes, e.Calls = first, at, uint64(n), 1
		e.Head, e.Tail = ends(data, n, c.toSwitch)
		if uint64(len(e.Head)+len(e.Tail)) < e.Bytes {
			e.Flags |= event.FlagCut
		}
		k.send(c, e, dir)
	default:
		if c.runDir != 0 {
			k.flush(at, c)
		}
		c.bulk.add(task, first, at, n)
	}
}

// used makes the KindOpen of a seeded socket.
func (k *Kernel) used(at event.Time, c *conn, task Task) {
	if c.fresh {
		c.fresh = false
		k.announce(at, c, task)
	}
}

func (k *Kernel) gather(at event.Time, c *conn, task Task, first event.Time, n int, data []byte) {
	if c.runDir != 0 && c.bufLen+n > runBytes {
		k.flush(at, c)
	}
	// Bytes that the recording does not have are zero, so that lengths stay right.
	copied := copy(c.buf[c.bufLen:c.bufLen+n], data)
	clear(c.buf[c.bufLen+copied : c.bufLen+n])
	c.bufLen += n
	c.run.add(task, first, at, n)
	c.runDir = c.dir
	head := bytes.HasSuffix(c.buf[:c.bufLen], []byte("\r\n\r\n"))
	switch {
	case c.body:
		c.body = false
		k.flush(at, c)
	case c.bufLen == runBytes:
		k.flush(at, c)
	case head:
		c.body = c.dir == event.In
		k.flush(at, c)
	}
}

// ends returns head and tail of n bytes.
func ends(data []byte, n int, toSwitch bool) (head, tail []byte) {
	limit := headBytes
	if toSwitch {
		limit = headSwitch
	}
	head = bytes.Clone(data[:min(len(data), limit)])
	if n > limit && len(data) == n {
		tail = bytes.Clone(data[n-min(tailBytes, n-limit):])
	}
	return head, tail
}

// switchRequest tells whether a message begins as a client of message-switch
// begins one. The programs look at 16 bytes at once, and no real request is
// shorter.
func switchRequest(b []byte) bool {
	if len(b) < 16 {
		return len(b) > 8 && bytes.HasPrefix(b, []byte("GET /ack"))
	}
	for _, s := range []string{"POST /transfer", "POST /request", "POST /response", "GET /login", "GET /persistent", "GET /transient", "GET /ack"} {
		if bytes.HasPrefix(b, []byte(s)) {
			return true
		}
	}
	return false
}

// flush sends what was counted and gathered. What was counted came first: a
// large piece flushes the run.
func (k *Kernel) flush(at event.Time, c *conn) {
	if c.bulk.calls > 0 {
		e := k.fromPiece(at, &c.bulk)
		e.Flags |= event.FlagCut | event.FlagMore
		k.send(c, e, c.dir)
	}
	if c.runDir != 0 {
		e := k.fromPiece(at, &c.run)
		e.Head = bytes.Clone(c.buf[:c.bufLen])
		dir := c.runDir
		c.bufLen, c.runDir = 0, 0
		k.send(c, e, dir)
	}
}

func (k *Kernel) fromPiece(at event.Time, p *piece) *event.Event {
	e := k.new(event.KindData, at, p.task)
	e.First, e.Last, e.Bytes, e.Calls = p.first, p.last, p.bytes, p.calls
	*p = piece{}
	return e
}

func (k *Kernel) send(c *conn, e *event.Event, dir event.Dir) {
	e.Conn, e.Ino, e.Dir = c.id, c.ino, dir
	if c.told == dir {
		e.Flags |= event.FlagMore
	}
	c.told = dir
	k.emit(e)
}

func (k *Kernel) eof(at event.Time, c *conn, task Task) {
	k.used(at, c, task)
	if c.ended {
		return
	}
	c.ended = true
	k.flush(at, c)
	e := k.new(event.KindData, at, task)
	e.First, e.Last, e.Calls = at, at, 1
	e.Flags |= event.FlagEOF
	k.send(c, e, event.In)
}

// Shutdown tells that shutdown begins.
func (k *Kernel) Shutdown(at event.Time, task Task, fd int32) {
	if c := k.conns[fdKey{task.TGID, fd}]; c != nil {
		k.flush(at, c)
	}
}

// AcceptEnter tells that accept or accept4 begins.
func (k *Kernel) AcceptEnter(at event.Time, task Task, listenFD int32) {
	if k.targets[task.TGID].watch&WatchStream != 0 {
		k.flights[task] = flight{op: opAccept, fd: listenFD, enter: at}
	}
}

// AcceptExit tells that accept returned the descriptor fd, or a negative
// number. listener is the name of the accepting socket.
func (k *Kernel) AcceptExit(at event.Time, task Task, fd int32, ino uint64, listener string) {
	if _, ok := k.end(task, opAccept); !ok || fd < 0 {
		return
	}
	c := k.know(at, task.TGID, fd, event.Accepted)
	c.ino, c.listener = ino, listener
	k.announce(at, c, task)
}

// Socket tells that socket made a stream socket.
func (k *Kernel) Socket(at event.Time, task Task, fd int32) {
	if k.targets[task.TGID].watch&WatchStream != 0 && fd >= 0 {
		k.know(at, task.TGID, fd, 0).plain = true
	}
}

// ConnectEnter tells that connect begins.
func (k *Kernel) ConnectEnter(at event.Time, task Task, fd int32) {
	if k.targets[task.TGID].watch&WatchStream != 0 {
		k.flights[task] = flight{op: opConnect, fd: fd, enter: at}
	}
}

// ConnectExit tells how connect ended: ok also for a connection in progress.
func (k *Kernel) ConnectExit(at event.Time, task Task, ok bool, ino uint64) {
	f, known := k.end(task, opConnect)
	if !known || !ok {
		return
	}
	if c := k.conns[fdKey{task.TGID, f.fd}]; c == nil || !c.plain {
		return // no stream socket, or connected before
	}
	c := k.know(at, task.TGID, f.fd, event.Connected)
	c.ino = ino
	k.announce(at, c, task)
}

// SocketPair tells that socketpair made two stream sockets.
func (k *Kernel) SocketPair(at event.Time, task Task, fds [2]int32) {
	if k.targets[task.TGID].watch&WatchStream == 0 {
		return
	}
	for _, fd := range fds {
		k.announce(at, k.know(at, task.TGID, fd, event.Paired), task)
	}
}

// Close tells that close begins.
func (k *Kernel) Close(at event.Time, task Task, fd int32) {
	key := fdKey{task.TGID, fd}
	c := k.conns[key]
	if c == nil {
		return
	}
	delete(k.conns, key)
	if c.plain {
		return
	}
	k.flush(at, c)
	e := k.new(event.KindClose, at, task)
	e.Conn, e.Ino = c.id, c.ino
	k.emit(e)
}

// Fork tells that task made a thread (the same TGID) or a process.
func (k *Kernel) Fork(at event.Time, task, child Task) {
	t := k.targets[task.TGID]
	if t.watch&WatchProcess == 0 {
		return
	}
	e := k.new(event.KindFork, at, task)
	e.ChildTGID, e.ChildTID = child.TGID, child.TID
	if child.TGID == task.TGID {
		e.Flags |= event.FlagThread
	} else {
		k.targets[child.TGID] = target{component: t.component, watch: WatchProcess}
	}
	k.emit(e)
}

// Exec tells of a successful execve. program and operation are what user space
// makes of the arguments.
func (k *Kernel) Exec(at event.Time, task Task, program, operation string) {
	if k.targets[task.TGID].watch&WatchProcess == 0 {
		return
	}
	e := k.new(event.KindExec, at, task)
	e.Program, e.Operation = program, operation
	k.emit(e)
}

// Exit tells the end of a thread. code is as wait(2) gives it.
func (k *Kernel) Exit(at event.Time, task Task, code int32) {
	delete(k.flights, task)
	if k.targets[task.TGID].watch&WatchProcess == 0 {
		return
	}
	e := k.new(event.KindExit, at, task)
	e.Code = code
	e.Flags |= event.FlagNoCPU
	if task.TID == task.TGID {
		e.Flags |= event.FlagLeader
	}
	k.emit(e)
	if task.TID == task.TGID {
		delete(k.targets, task.TGID)
		for key := range k.conns {
			if key.tgid == task.TGID {
				delete(k.conns, key)
			}
		}
	}
}
