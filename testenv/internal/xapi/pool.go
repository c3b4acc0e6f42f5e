//go:build linux

package xapi

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// databasePath is where the coordinator lets members into its database.
const databasePath = "/remote_db_access_v2"

// pool is what a xapi knows of the pool that its host is in.
type pool struct {
	*config.Pool // nil: the only host
	tunnels      tunnels
	ids          atomic.Int64 // of calls in JSON-RPC

	mu       sync.Mutex
	sessions map[string]bool // those that hosts opened, on the coordinator

	database struct {
		sync.Mutex // of the whole database, as seen from a member
		tunnel     *tunnel
	}
}

func newPool(s config.Setup) *pool {
	return &pool{Pool: s.Options.Pool, sessions: map[string]bool{}}
}

// coordinates tells whether this host has the pool's database.
func (p *pool) coordinates() bool { return p.Pool.Coordinator() }

// host is this host.
func (p *pool) host(d *database) config.Host {
	if p.Pool == nil {
		return config.Host{Ref: d.hostRef, UUID: d.host, Name: config.HostName}
	}
	return p.Hosts[p.Self]
}

// byRef is the host of that reference.
func (p *pool) byRef(d *database, ref string) (config.Host, bool) {
	if p.Pool == nil {
		return p.host(d), ref == d.hostRef
	}
	for _, h := range p.Hosts {
		if h.Ref == ref {
			return h, true
		}
	}
	return config.Host{}, false
}

// place is the host on which the coordinator has a long call done.
func (x *xapi) place(method string, v *vm, params []any) (config.Host, *failure) {
	ref := x.db.resident(v)
	switch method {
	case "VM.start":
		ref = v.Affinity
	case "VM.start_on":
		ref = str(params, 2)
		if _, ok := x.pool.byRef(x.db, ref); !ok {
			return config.Host{}, fail("HANDLE_INVALID", "host", ref)
		}
	}
	if h, ok := x.pool.byRef(x.db, ref); ok {
		return h, nil
	}
	return x.pool.host(x.db), nil
}

// connect opens a member's connection to the coordinator's database. It is not one
// of the cache: it stays with the database, under whose lock it is used.
func (p *pool) connect(t *node.Thread) error {
	tn, err := openTunnel(t, p.Hosts[0].Address, p.tunnels.number(), poolConfig)
	if err != nil {
		return err
	}
	t.Log(node.Info, "master_connection", "stunnel connected pid=%d fd=%d", tn.child.PID, tn.fd)
	p.database.tunnel = tn
	return nil
}

// remote is one request of a member to the coordinator's database. request and the
// answer are pairs of a name and what goes with it.
func (p *pool) remote(t *node.Thread, name string, args any) (json.RawMessage, *failure) {
	body, err := json.Marshal([]any{name, args})
	if err != nil {
		return nil, fail("INTERNAL_ERROR", err.Error())
	}
	head := "POST " + databasePath + " HTTP/1.1\r\ncookie: pool_secret=" + strings.ReplaceAll(p.Secret, "/", "%2F") + "\r\n" +
		strings.TrimPrefix(ownHeader("", len(body), "", ""), "\r\n")
	got, err := p.persistent(t, framed(head), string(body))
	if err != nil {
		t.Log(node.Debug, "master_connection", "Exceeded timeout for retrying master connection: raising Cannot_connect_to_master")
		return nil, fail("INTERNAL_ERROR", "Db_remote_cache_access_v1.Cannot_connect_to_master")
	}
	var pair [2]json.RawMessage
	if err := json.Unmarshal(got, &pair); err != nil {
		return nil, fail("INTERNAL_ERROR", err.Error())
	}
	if text(pair[0]) != name { // Dbcache_notfound
		var missing []string
		_ = json.Unmarshal(pair[1], &missing) // what is missing is shown as far as it is said
		return nil, fail(text(pair[0]), missing...)
	}
	return pair[1], nil
}

// The pauses of a member that has lost the coordinator's database, doubled each
// time, and how long it tries (master_connection.ml).
const (
	databasePause = 2 * time.Second
	databaseLimit = 60 * time.Second
)

// persistent makes a request on the connection to the coordinator's database. While
// that is lost, whoever wants something of it waits, this thread and all others.
func (p *pool) persistent(t *node.Thread, head, body string) ([]byte, error) {
	d := &p.database
	d.Lock()
	defer d.Unlock()
	begin := time.Now()
	for pause := databasePause; ; pause *= 2 {
		var got []byte
		err := errNoTunnel
		if d.tunnel != nil {
			got, err = d.tunnel.call(t, "POST "+databasePath, head, body, sys.Piece, func([]byte) *failure { return nil })
		}
		if err == nil {
			return got, nil
		}
		t.Log(node.Error, "master_connection", "Caught %v", err)
		if d.tunnel != nil {
			d.tunnel.disconnect()
			d.tunnel = nil
		}
		t.Log(node.Debug, "master_connection", "Connection to master died: time taken so far in this call '%f'; will timeout after '%f'", time.Since(begin).Seconds(), databaseLimit.Seconds())
		if time.Since(begin) > databaseLimit {
			return nil, err
		}
		t.Log(node.Debug, "master_connection", "Sleeping %f seconds before retrying master connection...", pause.Seconds())
		sys.Sleep(pause)
		if err := p.connect(t); err != nil {
			t.Log(node.Error, "master_connection", "%v", err)
		}
	}
}

// database serves a request of a member.
func (c *conn) database(s *node.Span, r *request) bool {
	t := c.t
	body := make([]byte, max(0, min(r.length, maxBody)))
	if err := sys.ReadFull(c.fd, body); err != nil {
		s.Err = unexpected(err).Error()
		return false
	}
	if r.header["cookie"] != "pool_secret="+strings.ReplaceAll(c.x.pool.Secret, "/", "%2F") {
		c.refuse(s, 401, "Unauthorised")
		return false
	}
	t.Tag = s.Name + " " + newRef("D")
	s.Tag = node.LastWord(t.Tag)
	t.NewSpanIf(c.in)
	name, value, err := c.x.serveDatabase(body)
	if err != nil {
		c.refuse(s, 500, "Internal Error")
		return false
	}
	answer, err := json.Marshal([]any{name, value})
	if err == nil {
		err = c.respond(r, 200, "OK", "application/json", string(answer))
	}
	if err != nil {
		s.Err = err.Error()
		return false
	}
	return r.keepAlive()
}

var errDatabase = errors.New("not a request to the database")

// serveDatabase does what members ask for.
func (x *xapi) serveDatabase(body []byte) (name string, value any, err error) {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(body, &pair); err != nil {
		return "", nil, err
	}
	name = text(pair[0])
	args := make([]json.RawMessage, 0, 4)
	if err := json.Unmarshal(pair[1], &args); err != nil || len(args) < 2 {
		return "", nil, errDatabase
	}
	args = append(args, nil, nil)[:4] // what is missing is no reference of anything
	table := text(args[0])
	missing := func(ref string) (string, any, error) {
		return "Dbcache_notfound", []string{"missing row", table, ref}, nil
	}
	switch name + " " + table {
	case "Read_field session":
		ref := text(args[2])
		if !x.db.hasSession(ref) {
			return missing(ref)
		}
		x.pool.mu.Lock()
		defer x.pool.mu.Unlock()
		return name, strconv.FormatBool(x.pool.sessions[ref]), nil
	case "Read_field task":
		ref := text(args[2])
		row, ok := x.db.task(ref)
		if !ok {
			return missing(ref)
		}
		return name, row.label, nil
	case "Write_field VM":
		if text(args[2]) == "power_state" {
			v := x.db.byRef(text(args[1]))
			if v == nil {
				return missing(text(args[1]))
			}
			x.db.setPower(v, text(args[3]))
			return name, nil, nil
		}
	case "Read_record Observer":
		o, ok := x.db.observers.get(text(args[1]))
		if !ok {
			return missing(text(args[1]))
		}
		return name, o, nil
	case "Read_records_where Observer":
		return name, x.db.observers.all(), nil
	case "Create_row session":
		x.db.openSession(text(args[2]))
		return name, nil, nil
	case "Delete_row session":
		x.db.removeSession(text(args[1]))
		return name, nil, nil
	}
	return "", nil, errDatabase
}

// checkSession tells whether a session is good for a call on this host. Members ask
// the coordinator, and let only hosts' sessions pass.
func (x *xapi) checkSession(t *node.Thread, session string) *failure {
	if x.pool.coordinates() {
		if !x.db.hasSession(session) {
			return fail("SESSION_INVALID", session)
		}
		return nil
	}
	of, f := x.pool.remote(t, "Read_field", []string{"session", "pool", session})
	switch {
	case f != nil && f.code == "Dbcache_notfound":
		return fail("SESSION_INVALID", session)
	case f != nil:
		return f
	case text(of) != "true":
		return fail("HOST_IS_SLAVE", x.pool.Hosts[0].Address)
	}
	return nil
}

// newSession opens a session in the pool's database.
func (x *xapi) newSession(t *node.Thread) (string, *failure) {
	if x.pool.coordinates() {
		return x.db.addSession(), nil
	}
	ref := "OpaqueRef:" + uuid()
	_, f := x.pool.remote(t, "Create_row", []any{"session", [][2]string{{"uuid", uuid()}, {"this_host", x.db.hostRef}, {"pool", "false"}}, ref})
	return ref, f
}

func (x *xapi) endSession(t *node.Thread, session string) {
	if x.pool.coordinates() {
		x.db.removeSession(session)
		return
	}
	if _, f := x.pool.remote(t, "Delete_row", []string{"session", session}); f != nil {
		t.Log(node.Error, "xapi_session", "Session.destroy: %s", f.code)
	}
}

// hostSession opens a session in which another host of the pool may be told what to do.
func (x *xapi) hostSession(t *node.Thread) string {
	session := x.db.addSession()
	x.pool.mu.Lock()
	x.pool.sessions[session] = true
	x.pool.mu.Unlock()
	t.Log(node.Info, "xapi_session", "Session.create trackid=%s pool=true uname= originator=xapi is_local_superuser=true auth_user_sid= parent=trackid=9834f5af41c964e225f24279aefe4e49", trackID(session))
	return session
}

func (x *xapi) endHostSession(t *node.Thread, session string) {
	x.pool.mu.Lock()
	delete(x.pool.sessions, session)
	x.pool.mu.Unlock()
	x.db.removeSession(session)
	t.Log(node.Info, "xapi_session", "Session.destroy trackid=%s", trackID(session))
}

// setPower writes a VM's state into the pool's database.
func (x *xapi) setPower(t *node.Thread, v *vm, state string) {
	x.db.setPower(v, state) // a member's cache of it
	if x.pool.coordinates() {
		return
	}
	if _, f := x.pool.remote(t, "Write_field", []string{"VM", v.Ref, "power_state", state}); f != nil {
		t.Log(node.Error, "xenops", "power_state of VM %s: %s", v.UUID, f.code)
	}
}

// quoted are strings as JSON, with commas between.
func quoted(ss ...string) string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = mswitch.Quoted(s)
	}
	return strings.Join(out, ",")
}
