//go:build linux

package xapi

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/forwarded"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/rrdd"
	"github.com/xenserver/dtagent/testenv/internal/xenopsd"
)

// passedTo is the socket of the daemon that a request is passed on to, "" for
// those that xapi answers itself.
func (c *conn) passedTo(r *request) string {
	if strings.HasPrefix(r.path, "/services/xenops") {
		return xenopsd.Forwarded
	}
	if !c.x.p.Setup.Options.RRDD {
		return ""
	}
	for _, p := range []string{"/rrd_updates", "/vm_rrd", "/host_rrd", "/sr_rrd", "/rrd"} {
		if r.method == "GET" && r.path == p {
			return rrdd.Forwarded
		}
	}
	return ""
}

// passOn gives the request's socket away; what is still to come on it is not
// xapi's.
func (c *conn) passOn(s *node.Span, r *request, path string) {
	t := c.t
	t.Tag = s.Name + " " + newRef("D")
	s.Tag = node.LastWord(t.Tag)
	t.NewSpan(c.in)
	key, err := forwarded.Key(c.fd)
	if err == nil {
		s.Keys = append(s.Keys, key)
		t.Log(node.Debug, "xapi_services", "hand_over_connection %s %s to %s", r.method, r.path, path)
		headers := map[string]string{}
		for _, h := range r.others {
			headers[h[0]] = h[1]
		}
		err = forwarded.Pass(path, forwarded.Request{Method: r.method, URI: r.path, Query: map[string]string{}, Version: r.version, Cookie: map[string]string{}, Headers: headers}, c.fd)
	}
	if err != nil {
		s.Err = err.Error()
	}
	unix.Close(c.fd)
	c.fd = -1
}
