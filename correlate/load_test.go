package correlate

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

// What follows makes the events of a dom0 at work, as many as wanted, and tells
// the truth about them: which span hangs under which. Pieces of work go on at
// once; connections, file descriptors, threads and processes are used again as
// soon as they are free, as on a real host.

// choose returns a number below n: from a source of random numbers or from a
// property test.
type choose func(n int) int

// piece is one piece of work, as a sequence of events of its own.
type piece struct {
	work
	maybe map[string]bool // spans that need not be there: their work was cut off
}

// Threads, connections and processes have the same numbers in every piece; load
// gives them real ones. Those of a role stay with it when the piece is over.
const (
	callThread     = 1000
	taskThread     = 2000
	rpcThread      = 3000
	listenerThread = 4000 // stays: xenopsd's reader
	workerThread   = 5000 // stays
	backThread     = 6000 // stays: a background thread of xapi
	waitThread     = 6500 // stays: xapi's reader
	childProcess   = 7000 // and those that follow

	callFD   = 1
	askFD    = 2 // to the switch: stay open
	waitFD   = 3
	listenFD = 4
	answerFD = 5
)

// kinds of pieces
const (
	plainPiece = iota
	failedPiece
	syncPiece  // a call that makes xenopsd work
	asyncPiece // the same, as an Async call
	backgroundPiece
	scriptPiece // a call that runs an SM script
	cutPiece    // a call whose client goes away half-way
	keptPiece   // two calls on one connection
	numPieces
)

// newPiece makes the i-th; its names, tasks and messages are its own.
func newPiece(t testing.TB, i int, pick choose) piece {
	p := piece{work: work{under: make(map[string]string)}, maybe: make(map[string]bool)}
	s := gather(t)
	kind := pick(numPieces)
	name := fmt.Sprintf("VM.m%d", i)
	var headers []string
	if kind != backgroundPiece && pick(2) == 0 {
		p.trace = fmt.Sprintf("ca11%028x", i+1)
		headers = []string{fmt.Sprintf("traceparent: 00-%s-ca11%012x-01", p.trace, i+1)}
	}
	open := func() { s.open(xapi, "c", callFD, event.Accepted, "/var/lib/xcp/xapi") }
	end := func() {
		s.close(xapi, "c")
		s.threadExit(xapi, callThread)
	}
	switch kind {
	case plainPiece, failedPiece:
		open()
		p.under[name] = ""
		s.request("c", callThread, name, headers...)
		s.log(xapi, callThread, fmt.Sprintf("%s D:%012x", name, i+1), "audit", "a line")
		s.reply("c", callThread, []string{success, failure}[kind], "HANDLE_INVALID")
		end()
	case keptPiece:
		open()
		for n := range 2 {
			one := fmt.Sprintf("%s.%d", name, n)
			p.under[one] = ""
			s.request("c", callThread, one, headers...)
			s.reply("c", callThread, success, "")
		}
		end()
	case syncPiece:
		open()
		p.under[name] = ""
		s.request("c", callThread, name, headers...)
		p.xenopsd(s, i, callThread, name, fmt.Sprintf("%s R:%012x", name, i+1), pick)
		s.reply("c", callThread, success, "")
		end()
	case asyncPiece:
		open()
		p.under["Async."+name], p.under[name] = "", "Async."+name
		s.request("c", callThread, "Async."+name, headers...)
		s.thread(xapi, callThread, taskThread)
		s.reply("c", callThread, success, fmt.Sprintf("OpaqueRef:%08x-%04x-0000-0000-000000000000", (i+1)>>16, (i+1)&0xffff))
		end()
		p.xenopsd(s, i, taskThread, name, fmt.Sprintf("%s R:%012x", name, i+1), pick)
		s.threadExit(xapi, taskThread)
	case backgroundPiece:
		// no call: a thread of xapi's own asks
		p.message(s, i, backThread, "", fmt.Sprintf("%s events D:%012x", xenops, i+1), pick, func(string) string { return `{}` })
	case scriptPiece:
		open()
		p.under[name] = ""
		s.request("c", callThread, name, headers...)
		script, helper := fmt.Sprintf("SR%d", i), fmt.Sprintf("helper%d", i)
		p.under[script], p.under[helper] = name, script
		s.fork(xapi, callThread, childProcess)
		s.exec(xapi, childProcess, "vfork_helper", "")
		s.exec(xapi, childProcess, script, "")
		s.fork(daemon{event.Xapi, childProcess, ""}, childProcess, childProcess+1)
		s.exec(xapi, childProcess+1, helper, "")
		s.exit(xapi, childProcess+1, 0)
		s.exit(xapi, childProcess, 256*int32(pick(2)))
		s.reply("c", callThread, success, "")
		end()
	case cutPiece:
		open()
		p.maybe[name] = true
		p.under[name] = ""
		s.request("c", callThread, name, headers...)
		s.events = s.events[:len(s.events)-pick(2)] // perhaps without its body
		if pick(2) == 0 {
			s.out(xapi, "c", callThread, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<")
		}
		end()
	}
	p.events = s.events
	return p
}

// message is a call through the switch by thread tid, under the span parent.
// answer makes what its thread at xenopsd does, and returns the result.
func (p *piece) message(s *script, i int, tid uint32, parent, tag string, pick choose, answer func(rpc string) string) {
	method := fmt.Sprintf("RPC.m%d", i)
	p.under[send+method], p.under[method] = parent, send+method
	for _, c := range []struct {
		of   daemon
		name string
		fd   int32
	}{{xapi, "ask", askFD}, {xapi, "wait", waitFD}, {xenopsd, "listen", listenFD}, {xenopsd, "answer", answerFD}} {
		s.open(c.of, c.name, c.fd, event.Connected, "")
	}
	early := pick(2) == 0 // the message arrives before its sender has its number
	deliver := func() {
		s.post(xenopsd, "listen", listenerThread, "/transfer", `{}`)
		s.answer(xenopsd, "listen", listenerThread, fmt.Sprintf(`{"messages":[[["%s",%d],{"payload":%s,"kind":["Request","xapi:100"]}]],"next":"1"}`, xenops, i, quote(rpcBody(method, tag))))
		s.thread(xenopsd, listenerThread, rpcThread)
	}
	s.ask(tid, method, tag)
	if early {
		deliver()
	}
	s.number(tid, i)
	if !early {
		deliver()
	}
	result := answer(method)
	s.respond(i, rpcThread, result)
	s.threadExit(xenopsd, rpcThread)
	body := `{"result":` + result + `,"error":null,"id":0}`
	s.post(xapi, "wait", waitThread, "/transfer", `{"from":"76","timeout":30.0,"queues":["xapi:100"]}`)
	s.answer(xapi, "wait", waitThread, fmt.Sprintf(`{"messages":[[["xapi:100",76],{"payload":%s,"kind":["Response",["%s",%d]]}]],"next":"76"}`, quote(body), xenops, i))
}

// xenopsd is what a call makes xenopsd do: an RPC, which a worker carries out
// with the help of a program.
func (p *piece) xenopsd(s *script, i int, tid uint32, parent, tag string, pick choose) {
	var after func()
	p.message(s, i, tid, parent, tag, pick, func(rpc string) string {
		op := fmt.Sprintf(`["VM_op%d",["%s",false]]`, i, vm)
		s.queued(rpcThread, workerThread, op)
		work := func() {
			s.started(workerThread, i, tag, op)
			name, on := fmt.Sprintf("VM_op%d", i), ""
			p.under[name] = rpc
			for n := range 1 + pick(3) {
				on = fmt.Sprintf("VM_atom%d_%d", i, n)
				p.under[on] = name
				s.performing(workerThread, tag, fmt.Sprintf(`["VM_atom%d_%d",["%s"]]`, i, n, vm))
			}
			program := fmt.Sprintf("program%d", i)
			p.under[program] = on
			s.fork(xenopsd, workerThread, childProcess)
			s.exec(xenopsd, childProcess, "vfork_helper", "")
			s.exec(xenopsd, childProcess, program, "")
			s.exit(xenopsd, childProcess, 0)
			s.completed(workerThread, i)
		}
		if pick(2) == 0 {
			work()
		} else {
			after = work
		}
		return fmt.Sprintf(`"%d"`, i)
	})
	if after != nil {
		after()
	}
}

// load puts pieces on one time line.
type load struct {
	t      testing.TB
	pick   choose // what the pieces are
	chance choose // when their events come, and where
	every  int    // ns between the beginnings of two pieces, twice that at most
	gap    int    // ns between two events of a piece, as much at most
	cpus   int    // threads move between these

	now     event.Time // when the next piece begins
	last    event.Time // of the last event
	next    int
	going   going
	ids     numbers // of threads and processes
	fds     map[uint32]*numbers
	roles   map[uint32][]uint32    // idle threads that stay, by their number in a piece
	idle    map[int32][]event.Conn // idle connections to the switch
	threads map[uint32]uint16      // thread → CPU
	made    func(*piece)           // told of each piece
	slots   map[event.Time]*piece  // nil: nobody asks
}

// Each event has a slot of time of its own, in which all times that it tells
// lie. So a span's start tells whose it is, whatever its name.
const slotTime = 1 << 14 // ns; longer than a call of a script

func slotOf(t event.Time) event.Time { return (t + slotTime - 1) / slotTime }

// numbers are given out again, the last that was given back first.
type numbers struct {
	free []uint32
	next uint32
}

func (n *numbers) take() uint32 {
	if k := len(n.free); k > 0 {
		x := n.free[k-1]
		n.free = n.free[:k-1]
		return x
	}
	n.next++
	return n.next
}

func (n *numbers) give(x uint32) { n.free = append(n.free, x) }

// run is a piece that goes on.
type run struct {
	*piece
	at    int        // its next event
	time  event.Time // of that
	ids   map[uint32]uint32
	conns map[int32]event.Conn
}

type going []*run

func (g going) Len() int           { return len(g) }
func (g going) Less(i, j int) bool { return g[i].time < g[j].time }
func (g going) Swap(i, j int)      { g[i], g[j] = g[j], g[i] }
func (g *going) Push(x any)        { *g = append(*g, x.(*run)) }
func (g *going) Pop() any {
	old := *g
	r := old[len(old)-1]
	*g = old[:len(old)-1]
	return r
}

func newLoad(t testing.TB, pick, chance choose, every, gap time.Duration) *load {
	return &load{
		t: t, pick: pick, chance: chance, every: int(every), gap: int(gap), cpus: 4, now: 1e9,
		ids: numbers{next: 10_000}, fds: map[uint32]*numbers{xapi.tgid: {next: 20}, xenopsd.tgid: {next: 20}},
		roles: make(map[uint32][]uint32), idle: make(map[int32][]event.Conn), threads: make(map[uint32]uint16), made: func(*piece) {},
	}
}

// begin starts another piece.
func (l *load) begin() {
	p := newPiece(l.t, l.next, l.pick)
	r := &run{piece: &p, time: l.now, ids: make(map[uint32]uint32), conns: make(map[int32]event.Conn)}
	l.next++
	l.made(r.piece)
	l.now += event.Time(1 + l.chance(2*l.every))
	heap.Push(&l.going, r)
}

// step makes the next event of all pieces; false: none goes on.
func (l *load) step(ev *event.Event) bool {
	for len(l.going) > 0 {
		r := l.going[0]
		if r.at == len(r.events) {
			heap.Pop(&l.going)
			l.over(r)
			continue
		}
		*ev = r.events[r.at]
		r.time = slotOf(max(r.time, l.last+1)) * slotTime
		l.last = r.time
		if l.slots != nil {
			l.slots[slotOf(r.time)] = r.piece
		}
		d := r.time - ev.Time
		ev.Time, ev.First, ev.Last = r.time, ev.First+d, ev.Last+d
		r.at++
		r.time += event.Time(1 + l.chance(l.gap))
		heap.Fix(&l.going, 0)
		if !l.real(r, ev) {
			continue
		}
		return true
	}
	return false
}

// real gives the event real numbers; false if there is no such event.
func (l *load) real(r *run, ev *event.Event) bool {
	if ev.TID == ev.TGID && ev.TID < callThread && ev.Conn.TGID == 0 {
		l.t.Fatalf("event of no thread: %+v", ev)
	}
	if ev.TGID >= childProcess {
		ev.TGID = l.id(r, ev.TGID)
	}
	gone := ev.TID
	if ev.TID >= callThread {
		ev.TID = l.id(r, ev.TID)
	}
	switch ev.Kind {
	case event.KindFork:
		ev.ChildTID = l.id(r, ev.ChildTID)
		if ev.ChildTGID >= childProcess {
			ev.ChildTGID = ev.ChildTID
		}
	case event.KindExit:
		l.ids.give(ev.TID)
		delete(r.ids, gone)
	case event.KindOpen:
		n := ev.Conn.FD
		if idle := l.idle[n]; len(idle) > 0 {
			r.conns[n] = idle[len(idle)-1]
			l.idle[n] = idle[:len(idle)-1]
			return false
		}
		r.conns[n] = event.Conn{TGID: ev.Conn.TGID, FD: int32(l.fds[ev.Conn.TGID].take()), Born: ev.Time}
	}
	if ev.Conn.TGID != 0 {
		n := ev.Conn.FD
		ev.Conn = r.conns[n]
		if ev.Kind == event.KindClose {
			l.fds[ev.Conn.TGID].give(uint32(ev.Conn.FD))
			delete(r.conns, n)
		}
	}
	if _, known := l.threads[ev.TID]; !known || l.chance(20) == 0 {
		l.threads[ev.TID] = uint16(l.chance(l.cpus))
	}
	ev.CPU = l.threads[ev.TID]
	return true
}

// id is the real number of a thread or process of a piece.
func (l *load) id(r *run, n uint32) uint32 {
	if x, ok := r.ids[n]; ok {
		return x
	}
	var x uint32
	if idle := l.roles[n]; len(idle) > 0 {
		x = idle[len(idle)-1]
		l.roles[n] = idle[:len(idle)-1]
	} else {
		x = l.ids.take()
	}
	r.ids[n] = x
	return x
}

// over gives back what stays.
func (l *load) over(r *run) {
	for _, n := range []uint32{listenerThread, workerThread, backThread, waitThread} {
		if x, ok := r.ids[n]; ok {
			l.roles[n] = append(l.roles[n], x)
			delete(r.ids, n)
		}
	}
	if len(r.ids) > 0 {
		l.t.Fatalf("threads and processes without an end: %v", r.ids)
	}
	for _, n := range []int32{askFD, waitFD, listenFD, answerFD} {
		if c, ok := r.conns[n]; ok {
			l.idle[n] = append(l.idle[n], c)
			delete(r.conns, n)
		}
	}
	if len(r.conns) > 0 {
		l.t.Fatalf("connections without an end: %v", r.conns)
	}
}

// all makes n pieces and returns their events in the order of time.
func (l *load) all(n int) (events []event.Event, truth *truth) {
	truth = newTruth()
	l.slots = truth.slots
	l.made = func(p *piece) { truth.pieces = append(truth.pieces, p) }
	var ev event.Event
	for n > 0 || len(l.going) > 0 {
		if n > 0 && (len(l.going) == 0 || l.now <= l.going[0].time) {
			l.begin()
			n--
			continue
		}
		if l.step(&ev) {
			events = append(events, ev)
		}
	}
	return events, truth
}

// verdict is what judge found.
type verdict struct {
	right, missing int
	wrong          []string // parents, trees and traces of others
	broken         []string // what cannot be of any span
}

// truth is what is known of events.
type truth struct {
	pieces []*piece
	slots  map[event.Time]*piece
}

func newTruth() *truth { return &truth{slots: make(map[event.Time]*piece)} }

// judge holds spans against the truth: each hangs under its parent, or under
// none, or under an ancestor when what lies between was not seen; and no tree
// and no trace holds two callers' spans.
func (w *truth) judge(spans []*Span) (v verdict) {
	wrong := func(format string, args ...any) { v.wrong = append(v.wrong, fmt.Sprintf(format, args...)) }
	broken := func(format string, args ...any) { v.broken = append(v.broken, fmt.Sprintf(format, args...)) }
	byID := make(map[trace.SpanID]*Span)
	for _, s := range spans {
		if byID[s.SpanID] != nil {
			broken("%s has the id of %s", s.Name, byID[s.SpanID].Name)
		}
		byID[s.SpanID] = s
	}
	traces := make(map[trace.TraceID]*piece)
	trees := make(map[uint64]*piece)
	for _, s := range spans {
		p := w.slots[slotOf(event.Time(s.Start))]
		if s.End < s.Start {
			broken("%s ends %d ns before it begins", s.Name, s.Start-s.End)
		}
		if p == nil {
			broken("%s begins when nothing happens", s.Name)
			continue
		}
		if o := traces[s.TraceID]; o != nil && o != p {
			wrong("%s is in a trace with others' work", s.Name)
		}
		if o := trees[s.Tree]; o != nil && o != p {
			wrong("%s is in a tree with others' work", s.Name)
		}
		traces[s.TraceID], trees[s.Tree] = p, p
		parent := byID[s.ParentID]
		want, known := p.under[s.Name]
		switch {
		case !known && len(p.maybe) > 0: // cut off before its name was told
		case !known:
			v.missing++ // what tells its name was not seen
		case parent == nil && s.ParentID.IsValid() && p.trace == "":
			wrong("%s hangs under a span that is not there", s.Name)
		case parent == nil && s.ParentID.IsValid() && s.TraceID.String() != p.trace:
			wrong("%s hangs under another caller's span", s.Name)
		case parent == nil && want == "":
			v.right++
		case parent == nil:
			v.missing++
		case parent.Name == want:
			v.right++
		case !p.has(parent.Name):
			v.missing++ // its parent's name is not known; the tree says that it is of the same work
		case parent.Name == s.Name:
			v.missing++ // a child whose exec was not seen is named as its parent; or its beginning came twice
		default:
			v.missing++
			for want != "" && want != parent.Name {
				want = p.under[want]
			}
			if want == "" {
				wrong("%s hangs under %s by %s", s.Name, parent.Name, s.Link)
			}
		}
	}
	return v
}

func (p *piece) has(name string) bool {
	_, ok := p.under[name]
	return ok
}

// expected returns the names of the spans that must come out.
func (w *truth) expected() (names []string) {
	for _, p := range w.pieces {
		for name := range p.under {
			if !p.maybe[name] {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// delayed are events in the order in which they arrive when each CPU's come late
// by what lag says; those of one CPU keep their order.
func delayed(events []event.Event, lag func(cpu uint16) event.Time) []arrival {
	last := make(map[uint16]event.Time)
	out := make([]arrival, len(events))
	for i := range events {
		ev := &events[i]
		at := max(ev.Time+lag(ev.CPU), last[ev.CPU])
		last[ev.CPU] = at
		out[i] = arrival{at, ev}
	}
	slices.SortStableFunc(out, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	return out
}

type arrival struct {
	at event.Time
	ev *event.Event
}
