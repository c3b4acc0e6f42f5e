package observer

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/remote"
)

type pipeKey struct{ uuid, endpoint, labels string }

func (s *Set) key(o Observer, endpoint string) pipeKey {
	return pipeKey{o.UUID, endpoint, s.labels(o, endpoint)}
}

// pipe returns the pipe of k, new if there is none that can be used.
func (s *Set) pipe(k pipeKey, o Observer) *pipe {
	if p := s.pipes[k]; p != nil {
		return p
	}
	s.sweep()
	sink := k.sink()
	before := slices.DeleteFunc(s.all(), func(p *pipe) bool { return p.sink != sink })
	if len(before) == 1 && before[0].key == k && before[0].resume() {
		p := before[0]
		s.leaving = slices.DeleteFunc(s.leaving, func(l *pipe) bool { return l == p })
		s.pipes[k] = p
		return p
	}
	// A queue on disk can be opened once only.
	before = slices.DeleteFunc(before, func(p *pipe) bool { return p.isOpen() && !p.isHolder() })
	log := s.o.Log.With("observer", o.NameLabel, "uuid", o.UUID)
	ledger := &export.Ledger{}
	p := newPipe(k, ledger, s.o.Limits, &s.budget, log)
	s.made++
	p.number = s.made
	p.open, p.after = s.maker(o, k.endpoint, ledger), before
	var exp export.Exporter
	if len(before) == 0 {
		var err error
		switch exp, err = p.open(); {
		case errors.Is(err, remote.ErrInUse):
			exp = nil // tried again
		case err != nil:
			log.Warn("endpoint not usable", "endpoint", show(k.endpoint), "err", err)
			exp = broken{err}
		}
	}
	p.start(exp)
	s.pipes[k] = p
	return p
}

// all returns the pipes that are given up and those in use.
func (s *Set) all() []*pipe { return slices.AppendSeq(slices.Clone(s.leaving), maps.Values(s.pipes)) }

// sweep adds the pipes that have ended to the retired counters. Of pipes with
// one sink each begins when the one before has ended, so they are asked from the
// newest on: those that have ended then are all there are before them, too, and
// what one has left and the next has found is known together.
func (s *Set) sweep() {
	newest := slices.SortedFunc(slices.Values(s.leaving), func(a, b *pipe) int { return cmp.Compare(b.number, a.number) })
	ended := slices.DeleteFunc(newest, func(p *pipe) bool { return !p.isDone() })
	for _, p := range ended {
		c := p.ledger.Counters()
		s.retired.Add(c)
		if c.Queued > 0 {
			s.left[p.sink] += c.Queued
		}
	}
	for _, p := range ended {
		s.claim(p)
	}
	s.leaving = slices.DeleteFunc(s.leaving, func(p *pipe) bool { return slices.Contains(ended, p) })
}

// claim takes off the retired counters what p has found on disk of what a pipe
// before it has left there: it is p's now.
func (s *Set) claim(p *pipe) {
	n := min(p.ledger.Counters().Recovered-p.claimed, s.left[p.sink])
	if n == 0 {
		return
	}
	p.claimed += n
	s.retired.Produced -= n
	s.retired.Queued -= n
	s.retired.Recovered -= n // may be below 0 until p is added
	if s.left[p.sink] -= n; s.left[p.sink] == 0 {
		delete(s.left, p.sink)
	}
}
