package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// migrationBytes is what a simulated xenopsd takes of a migration.
const migrationBytes = 100_000

// TestPassedSockets has xapi pass sockets on, as it does with requests for metrics
// and with migrations: xcp-rrdd and xenopsd answer on them.
func TestPassedSockets(t *testing.T) {
	l := newLab(t, testenv.Options{RRDD: true})
	l.observeOnly("xapi,xenopsd,xcp-rrdd", "xapi", "xenopsd", "xcp-rrdd")
	l.session() // its calls are others than those below
	type sent struct {
		name, id, parent string
		began            int64
	}
	var all []sent
	for i, transport := range []string{"unix", "tcp", "tls"} {
		for j, r := range []struct {
			method, path string
			body         []byte
		}{{"GET", "/rrd_updates", nil}, {"PUT", "/services/xenops/memory/" + transport, make([]byte, migrationBytes)}} {
			s := sent{name: r.method + " " + r.path, began: ktime(t)}
			o := client.Options{Shape: client.Python}
			if j == 1 || i > 0 {
				s.id, s.parent = fmt.Sprintf("%032x", 0xfade00+2*i+j), fmt.Sprintf("%016x", 0xcafe00+2*i+j)
				o.Traceparent, o.Tracestate = "00-"+s.id+"-"+s.parent+"-01", "vendor=x"
			}
			uri := r.path
			if r.method == "GET" {
				uri += "?start=1"
			}
			status, _, err := l.dial(transport, o).Request(context.Background(), r.method, uri, r.body)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals(status, 200))
			all = append(all, s)
			l.compare(s.began, s.name, s.id, s.parent)
		}
	}
	got := map[string]int{}
	for _, s := range l.spans() {
		for _, want := range all {
			if s.Name == want.name && s.Kind == "SERVER" {
				got[s.Service()+" "+s.Link()]++
			}
		}
	}
	qt.Check(t, qt.Equals(got["xcp-rrdd socket"] >= 3, true))
	qt.Check(t, qt.Equals(got["xenopsd socket"], 3))
	qt.Check(t, qt.Equals(l.status().Engine.BadHeads, 0))
	l.noLosses()
}
