package score

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv/truth"
)

// silent tells whether the kernel side can see nothing of an entry by itself: an
// atom has a log line only when an operation other than Atomic performs it;
// probes of cached connections, members' access to the database and the inner
// connection of an xe command that is passed on are not reported, and neither is a
// request whose header did not come to its end.
func silent(log *truth.Log, e *truth.Entry) bool {
	switch e.Kind {
	case truth.Delay:
		return true
	case truth.Client, truth.API:
		return strings.HasPrefix(e.Name, "system.isAlive:") || strings.HasPrefix(e.Name, "POST /remote_db_access") ||
			e.Kind == truth.Client && e.Name == "POST /cli" || e.Name == "(bad request)"
	case truth.Atom:
		p, ok := log.ByID(e.Parent)
		return ok && (p.Kind == truth.Atom || strings.HasPrefix(p.Name, "Atomic ("))
	}
	return false
}

// kindOf is the kind of entry that a span is of.
func kindOf(s *zipkin.Span) truth.Kind {
	switch s.Kind {
	case "SERVER":
		return truth.API
	case "CLIENT":
		return truth.Client
	case "PRODUCER":
		return truth.Send
	case "CONSUMER":
		return truth.RPC
	}
	switch {
	case s.Tags["dt.xenopsd.task.id"] != "":
		return truth.Operation
	case s.Tags["thread.id"] == "":
		return truth.Process
	case s.Service() == "xapi":
		return truth.Task
	}
	return truth.Atom
}

// place is what an entry and its span have in common beside the time.
type place struct {
	kind truth.Kind
	tgid uint32
	name string // message, task number, or thread
}

func message(queue, n string) string { return queue + " " + n }

func placeOf(e *truth.Entry) place {
	p := place{e.Kind, e.TGID, e.Detail}
	switch e.Kind {
	case truth.API, truth.Client, truth.Task, truth.Atom:
		p.name = strconv.Itoa(int(e.TID))
	case truth.Process:
		p.name = ""
	}
	return p
}

func placeOfSpan(s *zipkin.Span) place {
	pid, _ := strconv.ParseUint(s.Tags["process.pid"], 10, 32) // 0 is nobody's
	p := place{kindOf(s), uint32(pid), s.Tags["thread.id"]}
	switch p.kind {
	case truth.Send, truth.RPC:
		p.name = message(s.Tags["messaging.destination.name"], s.Tags["messaging.message.id"])
	case truth.Operation:
		p.name = s.Tags["dt.xenopsd.task.id"]
	case truth.Process:
		p.name = ""
	}
	return p
}

// matcher finds the entries of spans.
type matcher struct {
	log     *truth.Log
	offset  int64 // ns since 1970 at ktime 0
	entries map[place][]int
	span    []*zipkin.Span          // by entry; the first, where losses broke it into several
	pieces  []*zipkin.Span          // the others
	entry   map[*zipkin.Span]int    // index in log
	byID    map[string]*zipkin.Span // by span id: these are unique in the world
}

// slack is how much earlier than its entry a span may end and still be it: the entry
// of a call begins when its thread comes to run, of a span that was cut the end may
// have been before.
const slack = 20 * time.Millisecond

func newMatcher(log *truth.Log, spans []zipkin.Span, offset int64) *matcher {
	m := &matcher{log: log, offset: offset, entries: map[place][]int{}, span: make([]*zipkin.Span, len(log.Entries)),
		entry: map[*zipkin.Span]int{}, byID: map[string]*zipkin.Span{}}
	for i := range log.Entries { // in order of their beginning
		// Of requests that are not reported there can be a span when what tells that they
		// are such was lost.
		if e := &log.Entries[i]; !silent(log, e) || e.Kind == truth.API || e.Kind == truth.Client {
			m.entries[placeOf(e)] = append(m.entries[placeOf(e)], i)
		}
	}
	order := make([]*zipkin.Span, 0, len(spans))
	for i := range spans {
		s := &spans[i]
		if m.byID[s.ID] == nil { // two Observers write it twice
			m.byID[s.ID] = s
			order = append(order, s)
		}
	}
	slices.SortStableFunc(order, func(a, b *zipkin.Span) int { return cmp.Compare(a.Timestamp, b.Timestamp) })
	var left []*zipkin.Span
	for _, s := range order {
		if i, ok := m.find(s, false); ok {
			m.span[i], m.entry[s] = s, i
		} else {
			left = append(left, s)
		}
	}
	for _, s := range left {
		if i, ok := m.find(s, true); ok && s.Incomplete() != "" {
			m.entry[s] = i
			m.pieces = append(m.pieces, s)
		}
	}
	return m
}

// ktime turns a span's time into that of the truth.
func (m *matcher) ktime(micros int64) int64 { return micros*1000 - m.offset }

// nameOf is the name that an entry's span has: a task is called as the method that
// it does, the call that made it as it was sent.
func nameOf(e *truth.Entry) string {
	if e.Kind == truth.Task {
		return strings.TrimPrefix(e.Name, "Async.")
	}
	return e.Name
}

// find returns the entry that s is of: of those in its place that no span has yet,
// or of all, the one of its name during which it began, or else was, or nearest to
// which; if there is none of its name, of any.
func (m *matcher) find(s *zipkin.Span, all bool) (int, bool) {
	start, end := m.ktime(s.Timestamp), m.ktime(s.End())
	best, rank := -1, 0
	var distance, late int64 // of best: how far s was from it, and the starts from each other
	began := false           // in an entry that has a span already
	for _, i := range m.entries[placeOfSpan(s)] {
		e := &m.log.Entries[i]
		if host := s.Tags["xs.host.name"]; host != "" && host != e.Host {
			continue // hosts of a simulated pool share the numbers of processes
		}
		if m.span[i] != nil && !all {
			began = began || e.Start <= start && start <= e.End
			continue
		}
		if e.Start > end+slack.Nanoseconds() || e.End < start {
			continue
		}
		d, r := int64(0), 0
		switch {
		case s.Link() == "traceparent" && strings.Contains(e.Traceparent, "-"+s.ParentID+"-"):
			r = 2
		case nameOf(e) == s.Name && e.Kind != truth.Process:
			r = 1 // a process whose exec was lost is called as its parent
		}
		if start < e.Start || start > e.End { // a call's entry can begin late: see bounds
			d = 1 + max(e.Start-end, start-e.End, 0)
		}
		l := max(e.Start-start, start-e.Start)
		if best < 0 || r > rank || r == rank && (d < distance || d == distance && l < late) {
			best, rank, distance, late = i, r, d, l
		}
	}
	// A number is a process's until that has ended: a span that began in one is not of
	// the next, though losses may have made it last so long.
	if best >= 0 && began && kindOf(s) == truth.Process && start < m.log.Entries[best].Start {
		return -1, false
	}
	return best, best >= 0
}
