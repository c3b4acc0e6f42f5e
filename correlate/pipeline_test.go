package correlate

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// TestKnownTellsAllOfConnections compares what an engine knows of connections with
// what another does that was told by Known. It fails when something that KindOpen
// brings is kept and not told.
func TestKnownTellsAllOfConnections(t *testing.T) {
	open := event.Event{Kind: event.KindOpen, Component: event.Xapi, Time: 500}
	v := reflect.ValueOf(&open).Elem()
	for i := range v.NumField() { // also those that are added later
		f := v.Field(i)
		switch name := v.Type().Field(i).Name; {
		case name == "Kind" || name == "Component" || name == "Time" || name == "Flags" || name == "Dir" || name == "How" || name == "Wait":
		case f.CanUint():
			f.SetUint(uint64(i) + 1)
		case f.CanInt():
			f.SetInt(int64(i) + 1)
		case f.Kind() == reflect.String:
			f.SetString(fmt.Sprintf("/run/%d", i))
		}
	}
	open.Peer = netip.MustParseAddrPort("10.0.0.1:443")
	for _, how := range []event.How{event.Seeded, event.Accepted, event.Connected, event.Paired, event.Passed} {
		ev := open
		ev.How, ev.Conn = how, event.Conn{TGID: open.TGID, FD: int32(how), Born: 400}
		first, second := NewPipeline(Config{}), NewPipeline(Config{})
		first.engine.Handle(&ev)
		told := 0
		first.Known(func(ev *event.Event) {
			told++
			qt.Check(t, qt.Equals(ev.Time, 500))
			second.Add(ev)
		})
		second.Drain()
		qt.Assert(t, qt.Equals(told, 1))
		want, got := first.engine.conns.lru.head, second.engine.conns.lru.head
		qt.Assert(t, qt.IsNotNil(got))
		qt.Check(t, qt.IsTrue(reflect.DeepEqual(got.connState, want.connState)), qt.Commentf("%+v is not %+v", got.connState, want.connState))
	}
}

// TestKnownTellsWhatWaits: events that the sorter holds are told in the order in
// which they came; connections of which nothing but data was seen are not.
func TestKnownTellsWhatWaits(t *testing.T) {
	p := NewPipeline(Config{})
	at := 10 * event.Time(SortWindow)
	p.engine.Handle(&event.Event{Kind: event.KindData, Component: event.Xapi, Dir: event.In, Conn: event.Conn{TGID: 1, FD: 1, Born: 1}, Time: 1})
	for _, d := range []event.Time{5, 2, 2, 9, 1} {
		p.Add(&event.Event{Kind: event.KindFork, Time: at + d, Head: []byte{byte(d)}})
	}
	p.Advance(at + 9)
	var got []event.Time
	p.Known(func(ev *event.Event) {
		got = append(got, ev.Time-at)
		qt.Check(t, qt.DeepEquals(ev.Head, []byte{byte(ev.Time - at)}))
	})
	qt.Check(t, qt.DeepEquals(got, []event.Time{5, 2, 2, 9, 1}))
	_, s := p.Stats()
	qt.Check(t, qt.Equals(s.Held, 5)) // they still wait
	p.Drain()
	e, s := p.Stats()
	qt.Check(t, qt.Equals(s.Held, 0))
	qt.Check(t, qt.Equals(e.Events, 6))
}
