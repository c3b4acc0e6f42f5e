package observer

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/probes/event"
)

// tick is how often held spans and what was given up are looked at.
const tick = 250 * time.Millisecond

// SetHost changes what the Observers' default attributes say of this host. The
// uuid is that of the Options: which host this is does not change.
func (s *Set) SetHost(h Host) {
	s.apply.Lock()
	defer s.apply.Unlock()
	h.UUID = s.host.UUID
	if h != s.host {
		s.host = h
		s.converge(s.active)
	}
}

// Apply makes obs the Observers in force; it converges and may be called with
// the same ones again. Endpoints that an Observer keeps go on with their queues
// and connections; changed attributes are on the spans that are handed on from
// then on. Endpoints that are no longer named, or whose Observer was disabled
// or removed, still get the spans that had ended by then, which come a little
// later (Limits.Linger), flush what they hold, and then close; when they are named
// again in that time they go on as if nothing had been.
//
// obs are taken to be valid. What cannot be used is shown by Stats. Of several
// with one uuid the first counts. Apply does nothing after Close.
func (s *Set) Apply(obs []Observer) {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.converge(obs)
}

// converge is Apply with s.apply held.
func (s *Set) converge(obs []Observer) {
	if s.closed {
		return
	}
	now := time.Now()
	active := make([]Observer, 0, len(obs))
	var wanted Wanted
	taken := map[*pipe]bool{}
	inForce, again := map[string]bool{}, map[string]bool{}
	for _, o := range obs {
		if slices.ContainsFunc(active, func(a Observer) bool { return strings.EqualFold(a.UUID, o.UUID) }) {
			again[o.UUID] = true
			if !s.again[o.UUID] {
				s.o.Log.Warn("second Observer with the same uuid ignored", "uuid", o.UUID, "name_label", o.NameLabel)
			}
			continue
		}
		o = o.Clone()
		active = append(active, o)
		want := s.wants(o)
		if !o.On(s.host.UUID) || want == 0 {
			continue
		}
		inForce[o.UUID] = true
		steering, _ := o.Steering() // Stats shows what is wrong with it
		wanted.add(want, &steering)
		s.trust(o)
		var pipes []*pipe
		for _, e := range o.endpoints(steering) {
			p := s.pipe(s.key(o, e), o)
			p.configure(steering.BatchInterval, steering.BatchSpans)
			taken[p] = true
			pipes = append(pipes, p)
		}
		s.subscribe(o, steering, want, pipes, now)
	}
	s.warn(active)
	s.active, s.again = active, again
	s.forgetTrusts()
	s.mu.Lock()
	for _, sub := range s.subs {
		if !inForce[sub.uuid] {
			sub.claims, sub.outlets = sub.claimed(0, now), sub.connected(nil, now)
		}
	}
	s.sampled = wanted.Requests.Sample
	s.mu.Unlock()
	for k, p := range s.pipes {
		if !taken[p] {
			delete(s.pipes, k)
			s.leaving = append(s.leaving, p)
		}
	}
	s.endLate(now)
	s.arm()
	if s.trim != nil {
		s.trim.set(slices.ContainsFunc(slices.Collect(maps.Keys(s.pipes)), func(k pipeKey) bool { return k.endpoint == Bugtool }))
	}
	if wanted != s.wanted {
		s.wanted = wanted
		s.o.OnWanted(wanted)
	}
}

// forgetTrusts keeps a Trust as long as there is the Observer or an endpoint of
// it, which may come into use again.
func (s *Set) forgetTrusts() {
	keep := map[string]bool{}
	for _, o := range s.active {
		keep[o.UUID] = true
	}
	for _, p := range s.all() {
		keep[p.key.uuid] = true
	}
	maps.DeleteFunc(s.trusts, func(uuid string, _ *remote.Trust) bool { return !keep[uuid] })
}

// warn logs the warnings about Observers that are new.
func (s *Set) warn(active []Observer) {
	warned := map[string][]string{}
	for _, o := range active {
		if !o.observes(s.host.UUID) {
			continue
		}
		all := o.Warnings()
		for _, w := range all {
			if !slices.Contains(s.warned[o.UUID], w) {
				s.o.Log.Warn("Observer not wholly in force", "observer", o.NameLabel, "uuid", o.UUID, "warning", w)
			}
		}
		warned[o.UUID] = all
	}
	s.warned = warned
}

// wants returns the components that o gets spans of.
func (s *Set) wants(o Observer) event.Components { return o.Wants() &^ s.o.Experimental }

// subscribe makes o's subscription what o says.
func (s *Set) subscribe(o Observer, st Steering, want event.Components, pipes []*pipe, now time.Time) {
	i := slices.IndexFunc(s.subs, func(sub *subscription) bool { return sub.uuid == o.UUID })
	var sub *subscription
	if i < 0 {
		sub = newSubscription(o.UUID, st.processors())
	} else {
		sub = s.subs[i]
	}
	tags := o.Tags(s.host)
	size := 0
	for _, t := range tags {
		size += len(t.Key) + len(t.Value.AsString())
	}
	s.mu.Lock()
	sub.tags, sub.size, sub.edit, sub.native = tags, size, st.Edit, st.UnderNative
	sub.requests = st.Requests()
	sub.claims, sub.outlets = sub.claimed(want, now), sub.connected(pipes, now)
	if i < 0 {
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub.pipeline.Configure(st.processors())
}

// arm sees to the next tick, if there is anything to look at.
func (s *Set) arm() {
	if s.closed || len(s.subs) == 0 && len(s.leaving) == 0 {
		return
	}
	if s.ticker == nil {
		s.ticker = time.AfterFunc(tick, s.tick)
		return
	}
	s.ticker.Reset(tick)
}

func (s *Set) tick() {
	s.apply.Lock()
	defer s.apply.Unlock()
	if s.closed {
		return
	}
	now := time.Now()
	s.mu.RLock()
	for _, sub := range s.subs {
		sub.pipeline.Tick(now)
	}
	s.mu.RUnlock()
	s.endLate(now)
	s.arm()
}
