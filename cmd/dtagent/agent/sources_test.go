package agent

import (
	"context"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/xapi"
)

type nowhere struct{}

func (nowhere) Export(context.Context, []*export.Record) error { return nil }
func (nowhere) Close() error                                   { return nil }

func TestSources(t *testing.T) {
	const here, other = "3f6c0000-0000-4000-8000-000000000001", "3f6c0000-0000-4000-8000-000000000002"
	var s sources
	s.given = observer.Host{Name: "told"}
	s.known = observer.Host{UUID: here, Name: "kernel's"}
	s.set = observer.NewSet(observer.Options{Host: s.host(observer.Host{}), NoTrim: true,
		NewExporter: func(observer.Observer, string, *export.Ledger) (export.Exporter, error) { return nowhere{}, nil }})
	defer s.set.Close(context.Background())
	qt.Check(t, qt.Equals(s.host(observer.Host{Name: "XAPI's", PoolUUID: "pool"}), observer.Host{UUID: here, Name: "told", PoolUUID: "pool"}))
	s.given.Name = ""
	qt.Check(t, qt.Equals(s.host(observer.Host{Name: "XAPI's"}).Name, "XAPI's"))
	qt.Check(t, qt.Equals(s.host(observer.Host{}).Name, "kernel's"))

	one := func(id, name string) observer.Observer {
		return observer.Observer{UUID: id, NameLabel: name, Endpoints: []string{"e"}, Enabled: true}
	}
	names := func() (out []string) {
		for _, o := range s.set.Stats() {
			out = append(out, o.NameLabel)
		}
		return out
	}
	s.applyLocal([]observer.Observer{one(here, "local"), one(other, "local too")})
	qt.Check(t, qt.DeepEquals(names(), []string{"local", "local too"}))
	qt.Check(t, qt.Equals(s.of(other), "local"))
	s.applyXAPI(xapi.State{Observers: []observer.Observer{one(other, "the pool's")}})
	qt.Check(t, qt.DeepEquals(names(), []string{"the pool's", "local"}))
	qt.Check(t, qt.Equals(s.of(other), "xapi"))
	qt.Check(t, qt.Equals(s.of(here), "local"))
	s.applyXAPI(xapi.State{})
	qt.Check(t, qt.DeepEquals(names(), []string{"local", "local too"}))
	s.applyLocal(nil)
	qt.Check(t, qt.Equals(s.of(here), ""))
}
