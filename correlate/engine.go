package correlate

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/intern"
)

// Config is what an Engine needs from outside. The zero value works and keeps
// its spans to itself.
type Config struct {
	// Wall turns an event's time into ns since 1970. Nil: the number as it is.
	Wall func(event.Time) int64
	// Emit receives every finished span, from the goroutine that calls the
	// Engine. It must not call the Engine.
	Emit func(*Span)
	// Rand gives 64 random bits for trace and span ids. With the same events and
	// the same numbers the same spans come out. Nil: math/rand/v2.
	Rand func() uint64
	// Hold is how long a tree of spans waits for a trace id or a parent that a
	// later event may bring. 0: 2 s.
	Hold time.Duration
	// Limits bound what the Engine remembers.
	Limits Limits
}

// Limits bound an Engine. A zero field has the default.
type Limits struct {
	Activities int           // spans in the making; default 8,192. The oldest goes first
	Conns      int           // connections; default 4,096. The least recently used goes first
	Threads    int           // threads that have work, and threads whose time is known; default 4,096 each. The least recently used goes first
	Keys       int           // of each sort: messages, xenopsd tasks, XAPI tasks, calls between hosts; default 16,384. The oldest goes first
	BodyBytes  int           // kept of one body; default 17,408, the most that an event holds
	Buffers    int           // bodies kept at once; default 256. The oldest incomplete one is given up
	Age        time.Duration // of activities and keys; default 1 h

	// Requests of guests that become spans, a second: of one disk, default 20, and in
	// all, default 200; further ones are counted. Of what one disk has, samples leave
	// half to those that are slow.
	DiskRequests, Requests int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Activities, 8192)
	def(&l.Conns, 4096)
	def(&l.Threads, 4096)
	def(&l.Keys, 16384)
	def(&l.BodyBytes, 16384+1024)
	def(&l.Buffers, 256)
	def(&l.DiskRequests, 20)
	def(&l.Requests, 200)
	if l.Age <= 0 {
		l.Age = time.Hour
	}
	return l
}

// Engine turns events into spans. It keeps activities, which are spans in the
// making, and keys that point at them: sockets, threads, tasks, processes and
// messages. It has no clock and does no I/O: time is that of the events.
//
// An Engine is used by one goroutine.
type Engine struct {
	cfg    Config
	limits Limits
	hold   event.Time
	age    event.Time
	now    event.Time // the latest time heard of
	stats  Stats

	activities activityPool
	trees      treePool
	conns      connTable
	threads    threadTable
	times      timeTable
	waits      int // activities that are waits
	processes  processTable

	messages table[messageID, message]     // message-switch
	jobs     table[jobID, job]             // xenopsd's tasks
	tasks    table[wire.TaskID, taskPlace] // XAPI's tasks
	ended    table[wire.TaskID, taskPlace] // the same, whose span has ended: late events may still ask for them
	pushes   pushRing
	callers  table[uint64, connector] // by inode: sockets that were connected, and who did
	handed   table[uint64, handover]  // by inode: sockets that a process lets go of before it has answered
	errands  table[uint32, errand]    // by tgid: what forkexecd's processes start next
	hopsOut  table[hopKey, alike]     // calls to other hosts, and how often each was made
	hopsIn   table[hopKey, alike]     // the same from other hosts
	objects  table[uuid, object]      // VMs, disks, repositories, and who worked at them
	requests requestTable
	gaps     gaps

	dec     wire.Decoder
	strings *intern.Interner
	arena   arena
	scratch []byte
	buffers [][]byte
	bodies  list[body, *body] // that have one
}

// New returns an Engine.
func New(c Config) *Engine {
	if c.Wall == nil {
		c.Wall = func(t event.Time) int64 { return int64(t) }
	}
	if c.Emit == nil {
		c.Emit = func(*Span) {}
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	if c.Hold <= 0 {
		c.Hold = 2 * time.Second
	}
	e := &Engine{cfg: c, limits: c.Limits.withDefaults(), strings: intern.New(4096)}
	e.hold, e.age = event.Time(c.Hold), event.Time(e.limits.Age)
	e.conns.init()
	e.threads.init()
	e.times.init()
	e.processes.init()
	e.messages.init(e.limits.Keys, &e.stats.MessagesEvicted, e.dropMessage)
	e.jobs.init(e.limits.Keys, &e.stats.JobsEvicted, e.dropJob)
	e.tasks.init(e.limits.Keys, &e.stats.TasksEvicted, e.dropTaskPlace)
	e.ended.init(e.limits.Keys, &e.stats.TasksEvicted, e.dropTaskPlace)
	e.callers.init(e.limits.Keys, &e.stats.CallersEvicted, e.dropConnector)
	e.handed.init(e.limits.Keys, &e.stats.CallersEvicted, e.dropHandover)
	e.errands.init(e.limits.Keys, &e.stats.ErrandsEvicted, e.dropErrand)
	e.hopsOut.init(e.limits.Keys, &e.stats.HopsEvicted, func(*alike) {})
	e.hopsIn.init(e.limits.Keys, &e.stats.HopsEvicted, func(*alike) {})
	e.objects.init(e.limits.Keys, &e.stats.Objects.Evicted, e.dropObject)
	e.requests.init(e)
	return e
}

// Handle takes the next event. Events come near the order of their Time: see
// Sorter. The event may be reused after the call.
func (e *Engine) Handle(ev *event.Event) {
	e.stats.Events++
	e.now = max(e.now, ev.Time)
	if e.gaps.until != 0 {
		e.beginEpoch(ev)
	}
	switch ev.Kind {
	case event.KindData:
		e.handleData(ev)
	case event.KindLog:
		e.handleLog(ev)
	case event.KindOpen:
		e.handleOpen(ev)
	case event.KindClose:
		e.handleClose(ev)
	case event.KindFork:
		e.handleFork(ev)
	case event.KindExec:
		e.handleExec(ev)
	case event.KindExit:
		e.handleExit(ev)
	case event.KindLost:
		e.handleLost(ev)
	case event.KindTime:
		e.handleTime(ev)
	case event.KindRequest:
		e.handleRequest(ev)
	default:
		e.stats.UnknownEvents++
	}
}

// Advance tells the time when no event does: what was held long enough is
// emitted, and what is too old is given up. Call it at least ten times a second.
func (e *Engine) Advance(now event.Time) {
	e.now = max(e.now, now)
	for t := e.trees.waiting.head; t != nil && t.deadline <= e.now; t = e.trees.waiting.head {
		e.settle(t)
	}
	for a := e.activities.live.head; a != nil && a.born+e.age < e.now; a = e.activities.live.head {
		e.stats.ActivitiesAged++
		e.evict(a, "open too long")
	}
	before := e.now - e.age
	e.stats.KeysAged += e.messages.expire(before) + e.jobs.expire(before) + e.tasks.expire(before)
	e.ended.expire(e.now - 2*e.hold)
	e.callers.expire(e.now - 2*e.hold)
	e.handed.expire(e.now - e.hold)
	e.errands.expire(before)
	e.hopsOut.expire(before)
	e.hopsIn.expire(before)
	e.trimPushes()
	e.forgetWorks()
	e.tellRequests(e.now)
}

// Drain emits everything, as at the end of a run. Spans that are still open are
// Incomplete and end at the latest time heard of.
func (e *Engine) Drain() {
	e.handed.expire(math.MaxInt64)
	for a := e.activities.live.head; a != nil; a = e.activities.live.head {
		e.evict(a, "still open")
	}
	for tt := e.times.lru.head; tt != nil; tt = e.times.lru.head {
		e.dropTime(tt.tid)
	}
	e.tellRequests(math.MaxInt64)
}
