package observer

import "github.com/xenserver/dtagent/observer/export"

// entry is a queued record with the bytes that it keeps alive.
type entry struct {
	rec  export.Record
	size int
}

// queue is a ring that grows to what it is asked to hold. Its owner bounds it.
type queue struct {
	ring  []entry
	head  int
	n     int
	bytes int
}

func (q *queue) grow() {
	if q.n < len(q.ring) {
		return
	}
	ring := make([]entry, max(64, 2*len(q.ring)))
	for i := range q.n {
		ring[i] = q.ring[(q.head+i)%len(q.ring)]
	}
	q.ring, q.head = ring, 0
}

func (q *queue) push(e entry) {
	q.grow()
	q.ring[(q.head+q.n)%len(q.ring)] = e
	q.n++
	q.bytes += e.size
}

// unpop puts e back where it was popped.
func (q *queue) unpop(e entry) {
	q.grow()
	q.head = (q.head + len(q.ring) - 1) % len(q.ring)
	q.ring[q.head] = e
	q.n++
	q.bytes += e.size
}

// pop takes the oldest entry. There must be one.
func (q *queue) pop() entry {
	e := q.ring[q.head]
	q.ring[q.head] = entry{}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	q.bytes -= e.size
	return e
}
