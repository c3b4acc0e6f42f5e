package observer

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/xenserver/dtagent/correlate"
)

// Requests says which requests of guests to their disks are told one by one. The zero
// value: none.
type Requests struct {
	Slow   time.Duration // those that take so long; 0: none
	Factor float64       // those that take so many times what is usual of the disk, as SlowAfter says; 0: none
	Sample uint32        // one of so many, however long they take; 0: none
}

// Of requests that are slow by a factor.
const (
	DefaultFactor = 8
	// LeastSlow is what such a request takes at least: below, nobody in the guest feels it.
	LeastSlow = 20 * time.Millisecond
	// UnlearnedSlow is what it takes while it is not learned what is usual of the disk.
	UnlearnedSlow = 100 * time.Millisecond

	minSlow = 100 * time.Microsecond
	maxSlow = time.Hour
)

// SlowAfter returns how long a request is that is slow by a factor of what is usual.
func SlowAfter(factor float64, usual time.Duration) time.Duration {
	if usual <= 0 {
		return UnlearnedSlow
	}
	return max(LeastSlow, time.Duration(min(factor*float64(usual), float64(24*time.Hour))))
}

// add makes r what is wanted when o is wanted, too: of each kind the most.
func (r *Requests) add(o Requests) {
	least(&r.Slow, o.Slow)
	least(&r.Factor, o.Factor)
	least(&r.Sample, o.Sample)
}

// least makes a the smaller of both, 0 being none.
func least[T time.Duration | float64 | uint32](a *T, b T) {
	if b != 0 && (*a == 0 || b < *a) {
		*a = b
	}
}

// take tells whether a span of a request is among those that are wanted, when one of
// so many samples was told in all: other Observers may have asked for more.
func (r *Requests) take(sp *correlate.Span, told uint32) bool {
	g := sp.Guest
	if g.Slow && (r.Slow > 0 && g.Took >= int64(r.Slow) || r.Factor > 0 && g.Took >= int64(SlowAfter(r.Factor, time.Duration(g.Usual)))) {
		return true
	}
	switch {
	case r.Sample == 0:
		return false
	case g.Slow: // each of them was told
		told = 1
	case told == 0:
		return true // nobody wants any now: it was told by what held before
	}
	// The trace id decides, so that all spans of a request go the same way, and what
	// fewer samples have, more have, too.
	share := float64(told) / float64(r.Sample)
	return share >= 1 || float64(binary.BigEndian.Uint64(sp.TraceID[:8])) < share*math.MaxUint64
}

// TapdiskSteering is what the settings tapdisk.* say.
type TapdiskSteering struct {
	Slow   time.Duration
	Factor float64
	Off    bool // no request is told for being slow
	Sample uint32
}

// Requests returns which requests the Observer gets if it wants the component tapdisk.
func (s *Steering) Requests() Requests {
	r := Requests{Slow: s.Tapdisk.Slow, Factor: s.Tapdisk.Factor, Sample: s.Tapdisk.Sample}
	if r.Slow == 0 && r.Factor == 0 && !s.Tapdisk.Off {
		r.Factor = DefaultFactor
	}
	return r
}

func (s *steerer) tapdiskSlow(v string) {
	r := &s.Tapdisk
	if v == "off" {
		r.Off = true
		return
	}
	if text, ok := strings.CutPrefix(v, "x"); ok {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !(f >= 1 && f <= 1000) {
			s.warn("%q must be x and a number from 1 to 1000, such as x%d; it has no effect", shorten(v), DefaultFactor)
			return
		}
		r.Factor = f
		return
	}
	d, err := time.ParseDuration(v)
	switch {
	case err != nil:
		s.warn("%q is neither a duration nor a factor; write a number with a unit (us, ms, s), such as 50ms, or x%d, or off; it has no effect", shorten(v), DefaultFactor)
	case d != 0 && (d < minSlow || d > maxSlow):
		s.warn("%s must be from %s to %s; it has no effect", d, durationText(minSlow), durationText(maxSlow))
	default:
		r.Slow = d
	}
}

func (s *steerer) tapdiskSample(v string) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n < 1 || n > maxSample {
		s.warn("%q must be a whole number from 1 to %d; it has no effect", shorten(v), maxSample)
		return
	}
	s.Tapdisk.Sample = uint32(n)
}

// maxSample is the largest tapdisk.sample.
const maxSample = 1_000_000_000
