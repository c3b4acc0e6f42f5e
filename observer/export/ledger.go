package export

import (
	"sync"
	"time"
)

// Counters say what became of the spans that were handed to one endpoint. At
// every moment Produced = Sent + Lost() + Queued.
type Counters struct {
	Produced  uint64 // Recovered included
	Recovered uint64 // found on disk, left by an agent before this one
	Sent      uint64
	Queued    uint64 // waiting in memory or on disk, or being sent right now
	Dropped   [NumCauses]uint64
}

// Lost returns the sum of Dropped.
func (c Counters) Lost() uint64 {
	var n uint64
	for _, d := range c.Dropped {
		n += d
	}
	return n
}

// Add adds d to c.
func (c *Counters) Add(d Counters) {
	c.Produced += d.Produced
	c.Recovered += d.Recovered
	c.Sent += d.Sent
	c.Queued += d.Queued
	for i, n := range d.Dropped {
		c.Dropped[i] += n
	}
}

// DroppedByCause returns Dropped by the names of its causes, without zeros.
func (c Counters) DroppedByCause() map[string]uint64 {
	m := map[string]uint64{}
	for i, n := range c.Dropped {
		if n > 0 {
			m[Cause(i).String()] = n
		}
	}
	return m
}

// Health is how an endpoint fares.
type Health struct {
	Failing   bool // the last try failed
	LastError string
	ErrorTime time.Time // of LastError; zero: there was none
	SentTime  time.Time // when records were delivered last; zero: never
}

// Ledger keeps the accounts of one endpoint. Whoever takes records in, delivers
// them or drops them writes it down here; what is neither delivered nor dropped
// is queued. Its methods may be called by several goroutines at once.
type Ledger struct {
	mu     sync.Mutex
	c      Counters
	health Health
}

// Produced takes in one record.
func (l *Ledger) Produced() {
	l.mu.Lock()
	l.c.Produced++
	l.mu.Unlock()
}

// Recovered takes in n records that an agent before this one has left.
func (l *Ledger) Recovered(n int) {
	l.mu.Lock()
	l.c.Produced += uint64(n)
	l.c.Recovered += uint64(n)
	l.mu.Unlock()
}

// Sent notes that n records were delivered, which ends a failure. It tells
// whether there was one.
func (l *Ledger) Sent(n int) (wasFailing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Sent += uint64(n)
	wasFailing, l.health.Failing = l.health.Failing, false
	l.health.SentTime = time.Now()
	return wasFailing
}

// Delivered notes that n records of a batch were delivered of which others were
// not: it does not end a failure.
func (l *Ledger) Delivered(n int) {
	l.mu.Lock()
	l.c.Sent += uint64(n)
	l.mu.Unlock()
}

// Dropped notes that n records are lost.
func (l *Ledger) Dropped(c Cause, n int) {
	l.mu.Lock()
	l.c.Dropped[c%NumCauses] += uint64(n)
	l.mu.Unlock()
}

// Failed notes that a try failed. It tells whether this is news: the try before
// did not.
func (l *Ledger) Failed(err error) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	news, l.health.Failing = !l.health.Failing, true
	l.health.LastError, l.health.ErrorTime = err.Error(), time.Now()
	return news
}

// Counters returns the accounts. Their sum holds.
func (l *Ledger) Counters() Counters {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.c
	c.Queued = c.Produced - c.Sent - c.Lost()
	return c
}

// Health returns how the endpoint fares.
func (l *Ledger) Health() Health {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health
}
