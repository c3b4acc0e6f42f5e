package xapi

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

const (
	// logoutTimeout is for a courtesy: XAPI ends idle sessions after a day.
	logoutTimeout = 2 * time.Second
	// cycleMin is the shortest time from one event.from to the next. XAPI gathers
	// for 50 ms by itself.
	cycleMin = 50 * time.Millisecond
	// idlePause is for an XAPI that answers at once that nothing happened.
	idlePause = 500 * time.Millisecond
	// resyncMin and resyncMax bound the pauses between full reads that events
	// ask for.
	resyncMin, resyncMax = time.Second, time.Minute
)

// session is one login at XAPI. It outlives its connections; so sessions do not
// pile up while the toolstack is slow or restarts.
type session struct {
	c       *client
	timeout time.Duration
	ref     string // "": not logged in. A secret: it never leaves this type
}

// call makes a call with the session as its first parameter.
func (s *session) call(ctx context.Context, timeout time.Duration, method string, params ...any) (json.RawMessage, error) {
	return s.c.call(ctx, timeout, s.ref, method, append([]any{s.ref}, params...)...)
}

func (s *session) login(ctx context.Context) error {
	const method = "session.login_with_password"
	// On this socket any name and password do; the last two are the API version
	// and who is calling.
	raw, err := s.c.call(ctx, s.timeout, "", method, "root", "", "1.0", "dtagent")
	if err != nil {
		return err
	}
	ref, ok := reference(raw)
	if !ok {
		return &ReplyError{method, "the answer is not a session"}
	}
	s.ref = ref
	return nil
}

// logout ends the session, if XAPI can be asked. It works although ctx is done.
func (s *session) logout(ctx context.Context) {
	if s.ref == "" {
		return
	}
	_, _ = s.call(context.WithoutCancel(ctx), logoutTimeout, "session.logout")
	s.ref = ""
}

// follow keeps m like the database until something fails. deliver is called
// when m may have changed, first when it is whole, and tells whether it had.
func (s *Source) follow(ctx context.Context, sn *session, m *mirror, deliver func() bool) error {
	old := sn.ref != ""
	if !old {
		if err := sn.login(ctx); err != nil {
			return err
		}
	}
	err := s.readAll(ctx, sn, m)
	if old && isCode(err, codeSessionInvalid) { // as is to be expected of another toolstack
		sn.ref = ""
		if err := sn.login(ctx); err != nil {
			return err
		}
		err = s.readAll(ctx, sn, m)
	}
	if err != nil {
		return err
	}
	deliver()

	token := "" // from the start: whatever happened since readAll is told
	resync := pacer{pause: resyncMin}
	badTokens := 0
	for {
		begin := time.Now()
		wait := s.o.EventTimeout
		if resync.wanted {
			wait = max(min(wait, resync.due()), cycleMin)
		}
		b, err := s.events(ctx, sn, m, token, wait)
		if isCode(err, codeBadToken, codeEventsLost) && badTokens < 3 {
			badTokens++
			token = ""
			s.o.Log.Info("XAPI lost the place in its events, all Observers are read again")
			if err := s.readAll(ctx, sn, m); err != nil {
				return err
			}
			deliver()
			continue
		}
		if err != nil {
			return err
		}
		badTokens = 0
		s.count(func(st *Status) { st.Events += uint64(len(b.changes)) })

		whole := m.apply(b) && !(token == "" && missing(m, b))
		token = b.token
		if whole {
			resync.settle()
		} else {
			resync.wanted = true
		}
		if resync.wanted && resync.due() <= 0 {
			if err := s.readAll(ctx, sn, m); err != nil {
				return err
			}
			resync.done()
			token = ""
		} else if err := s.lookUp(ctx, sn, m); err != nil {
			return err
		}
		deliver()

		pause := cycleMin
		if len(b.changes) == 0 {
			if time.Since(begin) < wait/2 {
				pause = idlePause
			} else if !resync.wanted {
				// A database that was replaced by an older copy has a token in its
				// future, and says nothing until it is there.
				if err := s.readObservers(ctx, sn, m); err != nil {
					return err
				}
				if deliver() {
					s.o.Log.Info("an Observer changed without an event, all are read again")
					token = ""
				}
			}
		}
		sleep(ctx, pause-time.Since(begin))
	}
}

// pacer spaces the full reads that events ask for: XAPI may go on to contradict
// itself. The first is due at once.
type pacer struct {
	wanted bool
	pause  time.Duration
	last   time.Time
}

func (p *pacer) due() time.Duration { return p.pause - time.Since(p.last) }

func (p *pacer) done() {
	p.wanted, p.last, p.pause = false, time.Now(), min(2*p.pause, resyncMax)
}

// settle is for events that agree with what is there.
func (p *pacer) settle() {
	if !p.wanted {
		p.pause = resyncMin
	}
}

// missing tells whether m has Observers that an answer from the start lacks:
// they were destroyed before it.
func missing(m *mirror, b batch) bool {
	there := map[string]bool{}
	for _, c := range b.changes {
		if c.class == "observer" && c.operation != "del" {
			there[c.ref] = true
		}
	}
	return len(there) != len(m.observers)+m.skipped
}

// events asks what has changed since token, for at most wait.
func (s *Source) events(ctx context.Context, sn *session, m *mirror, token string, wait time.Duration) (batch, error) {
	// Host records are large and change often, and of others only the uuid is
	// wanted, which never does.
	host := "host"
	if m.hostRef != "" {
		host += "/" + m.hostRef
	}
	// XAPI's floats are told from integers by their point.
	seconds := json.Number(strconv.FormatFloat(wait.Seconds(), 'f', 3, 64))
	raw, err := sn.call(ctx, wait+s.o.CallTimeout, "event.from", []string{"observer", "pool", host}, token, seconds)
	if err != nil {
		return batch{}, err
	}
	b, ok := decodeBatch(raw)
	if !ok {
		return batch{}, &ReplyError{"event.from", "the answer has no token"}
	}
	return b, nil
}

// readAll makes m what the database says now.
func (s *Source) readAll(ctx context.Context, sn *session, m *mirror) error {
	s.count(func(st *Status) { st.Resyncs++ })
	clear(m.hosts)
	m.hostRef = ""
	if m.host.UUID != "" {
		if err := s.readHost(ctx, sn, m); err != nil {
			return err
		}
	}
	raw, err := sn.call(ctx, sn.timeout, "pool.get_all_records")
	if err != nil {
		return err
	}
	if err := eachMember(raw, func(_ string, record json.RawMessage) error {
		i, ok := decodeIdentity(record)
		if !ok {
			return errKind
		}
		m.host.PoolUUID = i.uuid
		return errEnough // there is one
	}); err != nil && !errors.Is(err, errEnough) {
		return &ReplyError{"pool.get_all_records", "the answer has no pool with a uuid"}
	}

	return s.readObservers(ctx, sn, m)
}

// readObservers makes the Observers of m those of the database.
func (s *Source) readObservers(ctx context.Context, sn *session, m *mirror) error {
	raw, err := sn.call(ctx, sn.timeout, "Observer.get_all_records")
	unsupported := isCode(err, codeUnknownMethod)
	s.count(func(st *Status) { st.Unsupported = unsupported })
	if unsupported { // before 23.14
		raw, err = json.RawMessage("{}"), nil
	}
	if err != nil {
		return err
	}
	if !m.replace(raw) {
		return &ReplyError{"Observer.get_all_records", "the answer is not a map of records"}
	}
	return s.lookUp(ctx, sn, m)
}

// readHost finds out how XAPI calls this host. XAPI may not know it.
func (s *Source) readHost(ctx context.Context, sn *session, m *mirror) error {
	raw, err := sn.call(ctx, sn.timeout, "host.get_by_uuid", m.host.UUID)
	if isCode(err, codeUUIDInvalid, codeHandleInvalid) {
		s.o.Log.Warn("XAPI does not know this host", "host", m.host.UUID)
		return nil
	}
	if err != nil {
		return err
	}
	ref, ok := reference(raw)
	if !ok {
		return &ReplyError{"host.get_by_uuid", "the answer is not a reference"}
	}
	raw, err = sn.call(ctx, sn.timeout, "host.get_name_label", ref)
	if err != nil {
		return err
	}
	name, ok := text(raw)
	if !ok {
		return &ReplyError{"host.get_name_label", "the answer is not a string"}
	}
	m.addHost(ref, identity{m.host.UUID, name})
	return nil
}

// lookUp finds the uuids of hosts that Observers name.
func (s *Source) lookUp(ctx context.Context, sn *session, m *mirror) error {
	for _, ref := range m.strangers() {
		raw, err := sn.call(ctx, sn.timeout, "host.get_uuid", ref)
		if isCode(err, codeHandleInvalid) {
			m.hosts[ref] = "" // the host is gone, the Observer still names it
			continue
		}
		if err != nil {
			return err
		}
		uuid, ok := reference(raw)
		if !ok {
			return &ReplyError{"host.get_uuid", "the answer is not a uuid"}
		}
		m.addHost(ref, identity{uuid: uuid})
	}
	return nil
}
