//go:build linux

package xapi

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

const cliMagic = "XenSource thin CLI protocol"

// cli is an xe command. Its API calls are made in this thread and are on no wire.
func (c *conn) cli(s *node.Span, r *request) {
	if r.length < 0 || r.length > maxBody {
		c.refuse(s, 400, "Bad Request")
		return
	}
	body := make([]byte, r.length)
	if err := sys.ReadFull(c.fd, body); err != nil {
		s.Err = unexpected(err).Error()
		return
	}
	lines := strings.FieldsFunc(string(body), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		c.refuse(s, 400, "Bad Request")
		return
	}
	session := ""
	if id, ok := strings.CutPrefix(lines[0], "session_id="); ok && len(lines) > 1 { // of the member that forwards it
		session, lines = id, lines[1:]
	}
	cmd, args := lines[0], map[string]string{}
	var shown []string
	for _, l := range lines[1:] {
		k, v, _ := strings.Cut(l, "=")
		args[k] = v
		if k == "password" {
			l = "password=(omitted)"
		}
		shown = append(shown, l)
	}
	s.Name = "xe " + cmd
	if !c.hello() {
		s.Err = "protocol"
		return
	}
	t := c.t
	t.Tag = "post_cli"
	own := t.NewSpan(c.in)
	t.Log(node.Debug, "cli", "xe %s %s", cmd, strings.Join(shown, " "))
	if session == "" {
		var f *failure
		if session, f = c.x.newSession(t); f != nil {
			s.Err = f.code
			return
		}
		defer c.x.endSession(t, session)
	}
	c.names()
	if !c.x.pool.coordinates() {
		if err := c.forwardCLI(lines, session); err != nil {
			s.Err = err.Error()
		}
		return
	}
	out, f := c.command(cmd, args, own)
	if f != nil {
		s.Err = f.code
		out = "The server failed to handle your request, due to an internal error. " + f.code + "\n" + strings.Join(f.params, "\n") + "\n"
	}
	status := uint32(0)
	if f != nil {
		status = 1
	}
	text := make([]byte, 12, 12+len(out))
	binary.LittleEndian.PutUint32(text, 9)
	binary.LittleEndian.PutUint32(text[8:], uint32(len(out)))
	exit := make([]byte, 12)
	binary.LittleEndian.PutUint32(exit, 9)
	binary.LittleEndian.PutUint32(exit[4:], 4)
	binary.LittleEndian.PutUint32(exit[8:], status)
	for _, m := range [][]byte{append(text, out...), exit} {
		if sys.Write(c.fd, binary.LittleEndian.AppendUint32(nil, uint32(len(m)))) != nil || sys.Write(c.fd, m) != nil {
			s.Err = "connection"
			return
		}
	}
}

// hello exchanges names and versions with a client.
func (c *conn) hello() bool { return hello(c.fd, true) }

// hello exchanges names and versions, read as the marshalling library reads: a
// number is 4 bytes, then nothing more is asked for. The server speaks first.
func hello(fd int, server bool) bool {
	say := func() bool {
		return sys.Write(fd, append([]byte(cliMagic), 0, 0, 0, 0, 2, 0, 0, 0)) == nil
	}
	if server && !say() {
		return false
	}
	got := make([]byte, len(cliMagic))
	if sys.ReadFull(fd, got) != nil || string(got) != cliMagic {
		return false
	}
	none := got[:0]
	for range 2 {
		_, _ = sys.Read(fd, none)
		if sys.ReadFull(fd, got[:4]) != nil {
			return false
		}
	}
	_, _ = sys.Read(fd, none)
	return server || say()
}

// command is one of xe's commands.
func (c *conn) command(cmd string, args map[string]string, own node.Context) (string, *failure) {
	db := c.x.db
	find := func() (*vm, *failure) {
		for _, v := range db.vms {
			if v.UUID == args["uuid"] || v.Name == args["vm"] || v.Name == args["name-label"] {
				return v, nil
			}
		}
		return nil, fail("UUID_INVALID", "VM", args["uuid"])
	}
	switch cmd {
	case "vm-list":
		c.t.Log(node.Debug, "api_readonly", "VM.get_all_records_where")
		var b strings.Builder
		for _, v := range db.vms {
			if args["params"] == "uuid" {
				fmt.Fprintf(&b, "uuid ( RO)    : %s\n\n\n", v.UUID)
				continue
			}
			fmt.Fprintf(&b, "uuid ( RO)           : %s\n     name-label ( RW): %s\n    power-state ( RO): %s\n\n\n", v.UUID, v.Name, strings.ToLower(db.power(v)))
		}
		return b.String(), nil
	case "vm-start", "vm-shutdown":
		v, f := find()
		if f != nil {
			return "", f
		}
		method := "VM.start"
		if cmd == "vm-shutdown" {
			method = "VM.clean_shutdown"
			if args["force"] == "true" || args["--force"] != "" {
				method = "VM.hard_shutdown"
			}
		}
		ref := newRef("R")
		row := db.addTask(full(ref), method)
		defer db.removeTask(row.ref)
		_, f = c.x.task(c.t, method, method, []any{"", v.Ref, false, false}[:arity[method]], own, row.ref, ref)
		return "", f
	}
	switch cmd {
	case "observer-list", "observer-create", "observer-destroy", "observer-param-set":
		return c.observerCommand(cmd, args, own)
	}
	return "", fail("CLI_UNKNOWN_COMMAND", cmd)
}
