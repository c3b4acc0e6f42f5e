//go:build linux

package xapi

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// obey does what the launcher asks of xapi alone.
func (x *xapi) obey(c config.Command) error {
	if c.ExpireSessions {
		x.db.endSessions()
	}
	if c.ForgetEvents {
		x.db.journal.forget()
	}
	return nil
}

// listenUnix makes xapi's socket; for a while nobody listens on it, if so ordered.
func listenUnix(p *node.Proc) (int, error) {
	if err := os.MkdirAll("/var/lib/xcp", 0o700); err != nil {
		return -1, err
	}
	fd, err := sys.BindUnix(Socket)
	if err != nil {
		return -1, err
	}
	sys.Sleep(p.Setup.Refused)
	return fd, sys.Listen(fd)
}

// emergencyCalls are those of the simulation's methods that work in emergency
// mode: none (datamodel.ml, emergency_calls).
var emergencyCalls = map[string]bool{}

// emergency is the failure of a call in emergency mode, nil if there is none.
func (x *xapi) emergency(method string) *failure {
	code := x.p.Knobs().Emergency
	if code == "" || emergencyCalls[method] {
		return nil
	}
	if code == "HOST_UNKNOWN_TO_MASTER" {
		return fail(code, x.db.host)
	}
	return fail(code)
}

// emergency is the answer to any call in emergency mode. In JSON it is no answer
// to this call: xapi raises the error where it does not know yet which one it is
// (api_server.ml, jsoncallback).
func (c *call) emergency(f *failure) string {
	if !c.json {
		return c.reply(nil, f)
	}
	b := append([]byte(`{"jsonrpc":"2.0","error":`), jsonStrings(append([]string{f.code}, f.params...))...)
	return string(append(b, `,"id":0}`...))
}

// errBroken ends a connection whose answer was broken as ordered.
var errBroken = errors.New("broken by order")

// reply answers a call, unless the answer is to be broken.
func (c *conn) reply(s *node.Span, r *request, method, contentType, body string) error {
	switch of(c.x.p.Knobs().Reply, method) {
	case config.ReplyGarbage:
		return c.respond(r, 200, "OK", contentType, "\x1f\x8b\x00<<{{"+strings.Repeat("\xff", 64))
	case config.ReplyHalf:
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\ncontent-type: %s\r\n\r\n", len(body), contentType)
		if err := sys.Write(c.fd, []byte(head+body[:len(body)/2])); err != nil {
			return err
		}
		return errBroken
	case config.ReplyError:
		c.refuse(s, 500, "Internal Error")
		return errBroken
	case config.ReplyNothing:
		return errBroken
	}
	return c.respond(r, 200, "OK", contentType, body)
}

// of is what is set for a method, or else for all those that are not named.
func of[T any](m map[string]T, method string) T {
	if v, ok := m[method]; ok {
		return v
	}
	return m["*"]
}
