package xapi

import (
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// dialPause is the pause while nobody listens: to look costs nothing, and a
	// restarted toolstack is to be noticed at once.
	dialPause = 500 * time.Millisecond
	// lookEvery is how often a pause looks whether there is a new socket.
	lookEvery = 250 * time.Millisecond
	// quickFor is how long after a loss pauses stay below quickPause: the
	// coordinator, or the whole toolstack, is most often back by then.
	quickFor, quickPause = 2 * time.Minute, 2 * time.Second
	// soundAfter is how long a connection must last for the next failure to count
	// as a first one.
	soundAfter = 10 * time.Second
)

// Source follows the pool's Observers.
type Source struct {
	o Options

	apply, save *latest[State]
	given       *State // last put there; owned by Run

	mu     sync.Mutex
	status Status
}

// New returns a Source that does nothing before Run.
func New(o Options) *Source {
	o = o.withDefaults()
	return &Source{o: o, apply: newLatest[State](), save: newLatest[State](),
		status: Status{Socket: o.Socket, StateFile: o.StateFile, State: Connecting, Since: time.Now()}}
}

// Status tells how the Source is doing. It may be called at any time.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Mistakes = slices.Clone(st.Mistakes)
	return st
}

func (s *Source) count(f func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
}

// Run calls apply with the State of the state file, if there is a good one, then
// with what XAPI says, and after each change within a second of it, but not more
// often than Options.ApplyEvery: the last State always arrives. Calls do not
// overlap, and may keep what they are given. While XAPI is lost nothing is
// applied: what was stays in force. Run returns nil when ctx is done, after it
// has logged out, and must be called once only.
func (s *Source) Run(ctx context.Context, apply func(State)) error {
	file := &stateFile{path: s.o.StateFile, host: s.o.HostUUID}
	s.start(file, apply)

	var wg sync.WaitGroup
	wg.Go(func() {
		s.apply.each(ctx, s.o.ApplyEvery, func(st State) {
			apply(st)
			s.count(func(x *Status) { x.Applied++; x.FromStateFile = false })
		})
	})
	// On its own: a disk may be slow.
	wg.Go(func() {
		s.save.each(ctx, s.o.SaveEvery, func(st State) { s.write(file, st) })
		if st, ok := s.save.take(); ok {
			s.write(file, st)
		}
	})
	s.stayConnected(ctx)
	wg.Wait()
	return nil
}

// start puts the State of the state file in force.
func (s *Source) start(file *stateFile, apply func(State)) {
	st, err := file.load()
	if err != nil {
		s.o.Log.Warn("state file not used, Observers are known when XAPI answers", "err", err)
		s.count(func(x *Status) { x.StateFileErr = err.Error() })
	}
	if st == nil {
		return
	}
	s.given = st
	s.count(func(x *Status) { x.FromStateFile, x.Observers = true, len(st.Observers) })
	s.o.Log.Info("Observers of the last run are in force until XAPI answers", "observers", len(st.Observers))
	apply(st.clone())
	s.count(func(x *Status) { x.Applied++ })
}

func (s *Source) write(file *stateFile, st State) {
	err := file.save(st)
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.count(func(x *Status) { text, x.StateFileErr = x.StateFileErr, text })
	if err == nil {
		return
	}
	if text != err.Error() { // text: what it was before
		s.o.Log.Warn("state file not written, trying on", "err", err)
	}
	time.AfterFunc(s.o.SaveRetry, func() { s.save.offer(st) })
}

// stayConnected follows XAPI until ctx is done, over all connections and
// sessions that this takes.
func (s *Source) stayConnected(ctx context.Context) {
	c := newClient(s.o.Socket, s.o.Version)
	defer c.close()
	sn := &session{c: c, timeout: s.o.CallTimeout}
	defer sn.logout(ctx)
	m := newMirror(s.o.HostUUID)
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.Multiplier = s.o.BackoffMin, 2
	for {
		socket := identify(s.o.Socket)
		var since time.Time
		err := s.follow(ctx, sn, m, func() bool {
			if since.IsZero() {
				since = time.Now()
			}
			return s.deliver(m)
		})
		if ctx.Err() != nil {
			return
		}
		s.lost(err, sn.ref)
		c.close()
		var xapi *Error
		var reply *ReplyError
		switch {
		case isCode(err, codeSessionInvalid):
			sn.ref = ""
		case errors.As(err, &xapi), errors.As(err, &reply):
			sn.logout(ctx) // it may be the session that is wrong
		}
		if !since.IsZero() && time.Since(since) >= soundAfter {
			pauses.Reset()
		}
		pauses.MaxInterval = s.o.BackoffMax
		if time.Since(s.Status().Since) < quickFor {
			pauses.MaxInterval = min(s.o.BackoffMax, quickPause)
		}
		pause := dialPause
		if nobodyListens(err) {
			pauses.Reset()
		} else {
			pause = pauses.NextBackOff()
		}
		if s.pause(ctx, pause, socket) {
			pauses.Reset()
		}
		if ctx.Err() != nil {
			return
		}
		s.count(func(x *Status) { x.Reconnects++ })
	}
}

// pause waits for d, or until there is another socket than old: the toolstack
// was restarted. It tells whether that is so.
func (s *Source) pause(ctx context.Context, d time.Duration, old fileIdentity) bool {
	for end := time.Now().Add(d); ctx.Err() == nil; {
		if now := identify(s.o.Socket); now != (fileIdentity{}) && now != old {
			return true
		}
		left := time.Until(end)
		if left <= 0 {
			break
		}
		sleep(ctx, min(left, lookEvery))
	}
	return false
}

// fileIdentity changes when a socket is made anew, also with the same inode.
type fileIdentity struct {
	dev, ino uint64
	ctime    syscall.Timespec
}

func identify(path string) fileIdentity {
	st, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fileIdentity{}
	}
	return fileIdentity{uint64(sys.Dev), sys.Ino, sys.Ctim}
}

// deliver passes on what m says, if it is something new, and tells whether it
// was.
func (s *Source) deliver(m *mirror) bool {
	st, mistakes := m.state()
	s.mu.Lock()
	was := s.status.State
	old := s.status.Mistakes
	if was != Connected {
		s.status.State, s.status.Since = Connected, time.Now()
	}
	s.status.Observers, s.status.Skipped, s.status.Mistakes = len(st.Observers), m.skipped, mistakes
	s.mu.Unlock()
	if was != Connected {
		s.o.Log.Info("Observers are those of XAPI", "observers", len(st.Observers), "pool", st.Host.PoolUUID, "host", st.Host.Name)
	}
	for _, x := range mistakes {
		if !slices.ContainsFunc(old, func(y Mistake) bool { return reflect.DeepEqual(x, y) }) {
			s.o.Log.Warn("Observer not usable as it is", "observer", x.UUID, "name", x.NameLabel, "kept", x.Kept, "err", strings.Join(x.Errors, "; "))
		}
	}
	if s.given != nil && reflect.DeepEqual(*s.given, st) {
		s.count(func(x *Status) { x.FromStateFile = false })
		return false
	}
	s.given = &st
	s.apply.put(st.clone())
	s.save.put(st)
	return true
}

// lost records that XAPI is not there, or that it did not come back.
func (s *Source) lost(err error, secret string) {
	text := redact(err.Error(), secret)
	now := time.Now()
	s.mu.Lock()
	was, before := s.status.State, s.status.LastError
	s.status.LastError, s.status.LastErrorTime = text, &now
	if was == Connected {
		s.status.State, s.status.Since = Lost, now
	}
	s.mu.Unlock()
	switch {
	case was == Connected:
		s.o.Log.Warn("XAPI lost, the last known Observers stay in force", "err", text)
	case before == "":
		s.o.Log.Warn("XAPI not reached, trying on", "err", text)
	default:
		s.o.Log.Debug("XAPI not reached", "err", text)
	}
}
