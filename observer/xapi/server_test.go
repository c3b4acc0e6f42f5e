package xapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// server is XAPI as far as Observers go: a database with generations, sessions,
// and event.from over a real socket, in the form that XAPI gives its answers.
type server struct {
	t      testing.TB
	socket string

	mu       sync.Mutex
	changed  chan struct{} // closed and made anew at each change
	gen      int64
	rows     map[string]*row
	dead     map[string]*row
	sessions map[string]bool
	logins   int
	logouts  int
	calls    []string // methods
	heads    []string // header bytes of the first requests
	fault    func(w http.ResponseWriter, method string, params []json.RawMessage, id string) bool
	badToken bool // the next tokens but "" are refused
	noCounts bool
	member   atomic.Bool // errors are passed on from the coordinator
	mute     bool        // tokens are of the future: event.from tells nothing
	http     *http.Server
}

type row struct {
	class                      string // as in the API
	created, modified, deleted int64
	record                     map[string]any
}

const (
	canary   = "OpaqueRef:c0ffee00-session-canary"
	hostUUID = "3f6c0000-0000-4000-8000-000000000001"
	hostRef  = "OpaqueRef:host-1"
	peerUUID = "3f6c0000-0000-4000-8000-000000000002"
	peerRef  = "OpaqueRef:host-2"
	poolUUID = "9001aaaa-0000-4000-8000-000000000009"
)

func newServer(t testing.TB) *server {
	s := &server{t: t, socket: t.TempDir() + "/xapi", changed: make(chan struct{}), rows: map[string]*row{}, dead: map[string]*row{}, sessions: map[string]bool{}}
	s.put("host", hostRef, map[string]any{"uuid": hostUUID, "name_label": "dom0-1", "cpu_info": map[string]string{"a": "b"}})
	s.put("host", peerRef, map[string]any{"uuid": peerUUID, "name_label": "dom0-2"})
	s.put("pool", "OpaqueRef:pool", map[string]any{"uuid": poolUUID, "name_label": "", "master": hostRef})
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) start() {
	l, err := net.Listen("unix", s.socket)
	qt.Assert(s.t, qt.IsNil(err))
	srv := &http.Server{Handler: s}
	s.mu.Lock()
	s.http = srv
	s.mu.Unlock()
	go srv.Serve(l)
}

// stop ends XAPI as a restart does: connections break, sessions are forgotten,
// the socket is gone.
func (s *server) stop() {
	s.mu.Lock()
	srv := s.http
	clear(s.sessions)
	s.mu.Unlock()
	srv.Close()
}

func (s *server) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// put adds or modifies a row.
func (s *server) put(class, ref string, record map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	if r := s.rows[ref]; r != nil {
		r.modified, r.record = s.gen, record
	} else {
		s.rows[ref] = &row{class: class, created: s.gen, modified: s.gen, record: record}
	}
	s.touch()
}

func (s *server) del(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	r := s.rows[ref]
	delete(s.rows, ref)
	r.deleted = s.gen
	s.dead[ref] = r
	s.touch()
}

// forget drops all sessions, as XAPI does after a day or for its limit.
func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
	s.touch()
}

func (s *server) setFault(f func(w http.ResponseWriter, method string, params []json.RawMessage, id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *server) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *server) count(method string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.calls {
		if m == method {
			n++
		}
	}
	return n
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var call struct {
		Version string            `json:"jsonrpc"`
		ID      json.RawMessage   `json:"id"`
		Method  string            `json:"method"`
		Params  []json.RawMessage `json:"params"`
	}
	head, _ := httputil.DumpRequest(r, false)
	if err := json.NewDecoder(r.Body).Decode(&call); err != nil || r.URL.Path != "/jsonrpc" || r.ContentLength <= 0 {
		http.Error(w, "internal error", 500)
		return
	}
	id := string(call.ID)
	s.mu.Lock()
	s.calls = append(s.calls, call.Method)
	if len(s.heads) < 10 {
		s.heads = append(s.heads, string(head))
	}
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, call.Method, call.Params, id) {
		return
	}
	if call.Method == "session.login_with_password" {
		s.mu.Lock()
		s.logins++
		ref := fmt.Sprintf("%s-%d", canary, s.logins)
		s.sessions[ref] = true
		s.mu.Unlock()
		answer(w, id, strconv.Quote(ref))
		return
	}
	session := str(call.Params[0])
	if !s.known(session) {
		s.fail(w, id, codeSessionInvalid, session)
		return
	}
	args := call.Params[1:]
	switch call.Method {
	case "session.logout":
		s.mu.Lock()
		delete(s.sessions, session)
		s.logouts++
		s.mu.Unlock()
		answer(w, id, `""`)
	case "host.get_by_uuid":
		s.mu.Lock()
		defer s.mu.Unlock()
		for ref, r := range s.rows {
			if r.class == "host" && r.record["uuid"] == str(args[0]) {
				answer(w, id, strconv.Quote(ref))
				return
			}
		}
		s.fail(w, id, codeUUIDInvalid, "host", str(args[0]))
	case "host.get_name_label", "host.get_uuid":
		s.mu.Lock()
		defer s.mu.Unlock()
		r := s.rows[str(args[0])]
		if r == nil {
			s.fail(w, id, codeHandleInvalid, "host", str(args[0]))
			return
		}
		answer(w, id, strconv.Quote(r.record[strings.TrimPrefix(call.Method, "host.get_")].(string)))
	case "pool.get_all_records", "Observer.get_all_records":
		s.mu.Lock()
		defer s.mu.Unlock()
		out := map[string]any{}
		for ref, r := range s.rows {
			if strings.HasPrefix(call.Method, r.class) {
				out[ref] = r.record
			}
		}
		data, _ := json.Marshal(out)
		answer(w, id, string(data))
	case "event.from":
		s.eventFrom(w, id, session, args)
	default:
		s.fail(w, id, codeUnknownMethod, call.Method)
	}
}

func (s *server) known(session string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[session]
}

func str(raw json.RawMessage) (v string) {
	_ = json.Unmarshal(raw, &v)
	return v
}

func (s *server) eventFrom(w http.ResponseWriter, id, session string, args []json.RawMessage) {
	var classes []string
	var seconds float64
	_ = json.Unmarshal(args[0], &classes)
	_ = json.Unmarshal(args[2], &seconds)
	if !strings.Contains(string(args[2]), ".") {
		s.fail(w, id, "FIELD_TYPE_ERROR", "timeout")
		return
	}
	token := str(args[1])
	var from int64
	if token != "" {
		var err error
		from, err = strconv.ParseInt(strings.Split(token, ",")[0], 10, 64)
		s.mu.Lock()
		bad := s.badToken
		s.badToken = false
		s.mu.Unlock()
		if bad || err != nil || len(token) != 41 {
			s.fail(w, id, codeBadToken, token)
			return
		}
	}
	deadline := time.After(time.Duration(seconds * float64(time.Second)))
	for {
		s.mu.Lock()
		events, changed := s.since(from, classes), s.changed
		counts := map[string]int{}
		for _, r := range s.rows {
			counts[strings.ToLower(r.class)]++
		}
		if s.noCounts {
			counts = nil
		}
		last := s.gen
		if s.mute && token != "" {
			events, last = nil, from
		}
		s.mu.Unlock()
		over := false
		if len(events) == 0 {
			select {
			case <-changed:
				time.Sleep(50 * time.Millisecond)
			case <-deadline:
				over = true
			}
		}
		if !s.known(session) {
			s.fail(w, id, codeSessionInvalid, session)
			return
		}
		if len(events) > 0 || over {
			data, _ := json.Marshal(map[string]any{"events": append([]any{}, events...), "valid_ref_counts": counts, "token": fmt.Sprintf("%020d,%020d", last, 0)})
			answer(w, id, string(data))
			return
		}
	}
}

// since is called with the lock held. XAPI tells what was created, then what was
// modified, then what was destroyed.
func (s *server) since(from int64, classes []string) []any {
	var out []any
	matches := func(class, ref string) bool {
		class = strings.ToLower(class)
		return slices.Contains(classes, class) || slices.Contains(classes, class+"/"+ref)
	}
	event := func(gen int64, op, ref string, r *row) {
		e := map[string]any{"id": strconv.FormatInt(gen, 10), "timestamp": "0.0", "class": strings.ToLower(r.class), "operation": op, "ref": ref}
		if op != "del" {
			e["snapshot"] = r.record
		}
		out = append(out, e)
	}
	for ref, r := range s.rows {
		if r.created > from && matches(r.class, ref) {
			event(r.created, "add", ref, r)
		}
	}
	for ref, r := range s.rows {
		if r.created <= from && r.modified > from && matches(r.class, ref) {
			event(r.modified, "mod", ref, r)
		}
	}
	for ref, r := range s.dead {
		if r.created <= from && r.deleted > from && matches(r.class, ref) {
			event(r.deleted, "del", ref, r)
		}
	}
	return out
}

// fail answers as XAPI was recorded to: the code is the message, data holds its
// parameters only. A member passes on a list.
func (s *server) fail(w http.ResponseWriter, id, code string, params ...string) {
	if !s.member.Load() {
		fail(w, id, code, params...)
		return
	}
	data, _ := json.Marshal(append([]string{code}, params...))
	reply(w, fmt.Sprintf(`{"jsonrpc":"2.0","error":%s,"id":%s}`, data, id))
}

func answer(w http.ResponseWriter, id, result string) {
	reply(w, fmt.Sprintf(`{"jsonrpc":"2.0","result":%s,"id":%s}`, result, id))
}

func fail(w http.ResponseWriter, id, code string, params ...string) {
	data, _ := json.Marshal(append([]string{}, params...))
	reply(w, fmt.Sprintf(`{"jsonrpc":"2.0","error":{"code":1,"message":%q,"data":%s},"id":%s}`, code, data, id))
}

func reply(w http.ResponseWriter, body string) {
	h := w.Header()
	h.Set("content-length", strconv.Itoa(len(body)))
	h.Set("connection", "keep-alive")
	h.Set("cache-control", "no-cache, no-store")
	h.Set("content-type", "application/json")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With")
	_, _ = w.Write([]byte(body))
}

// record is an Observer as XAPI stores it.
func record(n int, more ...any) map[string]any {
	r := map[string]any{
		"uuid": uuidOf(n), "name_label": fmt.Sprint("o", n), "name_description": "", "hosts": []string{}, "attributes": map[string]string{},
		"endpoints": []string{"bugtool"}, "components": []string{"xapi"}, "enabled": true,
	}
	for i := 0; i < len(more); i += 2 {
		r[more[i].(string)] = more[i+1]
	}
	return r
}

func uuidOf(n int) string { return fmt.Sprintf("0b5e0000-0000-4000-8000-%012d", n) }

func refOf(n int) string { return fmt.Sprint("OpaqueRef:observer-", n) }

func (s *server) observer(n int, more ...any) { s.put("Observer", refOf(n), record(n, more...)) }

// running is a Source at work, and what it applied.
type running struct {
	*Source
	t    testing.TB
	log  *syncBuffer
	stop func()

	mu    sync.Mutex
	calls int
	last  State
	busy  bool
	slow  time.Duration
}

func run(t testing.TB, o Options) *running {
	t.Helper()
	log := &syncBuffer{}
	o.Log = log.logger()
	if o.HostUUID == "" {
		o.HostUUID = hostUUID
	}
	r := &running{Source: New(o), t: t, log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, r.take) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			qt.Check(t, qt.IsNil(err))
		case <-time.After(2 * time.Minute):
			t.Error("Run did not return within 2 min")
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) take(st State) {
	r.mu.Lock()
	if r.busy {
		r.t.Error("two calls of apply at once")
	}
	r.busy = true
	slow := r.slow
	r.mu.Unlock()
	time.Sleep(slow)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	r.calls++
	r.last = st
}

func (r *running) state() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *running) applied() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// names waits until just these Observers are in force and returns how long that
// took.
func (r *running) names(names ...string) time.Duration {
	r.t.Helper()
	return r.until(fmt.Sprintf("the Observers %q", names), func(st State) bool {
		var got []string
		for _, o := range st.Observers {
			got = append(got, o.NameLabel)
		}
		return r.applied() > 0 && slices.Equal(got, names)
	})
}

func (r *running) until(what string, ok func(State) bool) time.Duration {
	r.t.Helper()
	begin := time.Now()
	for !ok(r.state()) {
		if time.Since(begin) > 2*time.Minute {
			r.t.Fatalf("not within 2 min: %s; state %+v; status %+v\n%s", what, r.state(), r.Status(), r.log)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(begin)
}
