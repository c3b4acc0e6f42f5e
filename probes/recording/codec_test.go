package recording

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// leaves calls fn for every settable field of v that has no fields itself, and
// for the elements of arrays.
func leaves(v reflect.Value, path string, fn func(path string, v reflect.Value)) {
	switch {
	case v.Type() == reflect.TypeFor[netip.AddrPort]():
		fn(path, v)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			leaves(v.Field(i), path+"."+v.Type().Field(i).Name, fn)
		}
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			leaves(v.Index(i), path+"[]", fn)
		}
	case v.Type() == reflect.TypeFor[*event.GuestDisk]():
		fn(path, v)
	default:
		fn(path, v)
	}
}

// fill gives a field a value that no other has, as far as its size allows.
func fill(t testing.TB, path string, v reflect.Value, n int) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *event.Kind:
		*x = event.KindData
		return
	case *event.Component:
		*x = event.Xenopsd
		return
	case *netip.AddrPort:
		*x = netip.MustParseAddrPort("[fe80::1%eth0]:443")
		return
	case *[]byte:
		*x = []byte(path)
		return
	case *string:
		*x = path
		return
	case *[]string:
		*x = []string{path, ""}
		return
	case *bool:
		*x = true
		return
	case **event.GuestDisk:
		*x = new(event.GuestDisk)
		leaves(reflect.ValueOf(*x).Elem(), path, func(path string, v reflect.Value) {
			n++
			fill(t, path, v, n)
		})
		return
	}
	switch {
	case v.CanInt():
		v.SetInt(int64(n) - 1<<(v.Type().Bits()-2))
	case v.CanUint():
		v.SetUint(uint64(n) + 1<<(v.Type().Bits()-1))
	default:
		t.Fatalf("event.Event%s is of type %s, which neither this test nor the codec knows", path, v.Type())
	}
}

func roundTrip(t testing.TB, ev *event.Event, now event.Time) event.Event {
	t.Helper()
	c := cursor{b: appendEvent(nil, ev, now)}
	got := event.Event{Kind: 99, TGID: 99, Head: []byte("left over")}
	c.event(&got, now, names{})
	qt.Assert(t, qt.IsNil(c.err))
	qt.Assert(t, qt.HasLen(c.b, 0))
	return got
}

func same(t testing.TB, got, want event.Event) {
	t.Helper()
	qt.Check(t, qt.IsTrue(reflect.DeepEqual(got, want)), qt.Commentf("%+v is not %+v", got, want))
}

// TestEveryFieldIsKept fails for a field of event.Event that the codec forgets,
// those that are added later included.
func TestEveryFieldIsKept(t *testing.T) {
	var all event.Event
	fields := 0
	leaves(reflect.ValueOf(&all).Elem(), "", func(path string, v reflect.Value) {
		fields++
		fill(t, path, v, fields)
	})
	same(t, roundTrip(t, &all, 0), all)
	same(t, roundTrip(t, &all, math.MaxInt64), all)
	for i := range fields { // each alone
		ev := event.Event{Kind: event.KindExit}
		n := 0
		leaves(reflect.ValueOf(&ev).Elem(), "", func(path string, v reflect.Value) {
			if n == i {
				fill(t, path, v, 1)
			}
			n++
		})
		same(t, roundTrip(t, &ev, 12345), ev)
	}
	t.Logf("%d fields", fields)
}

func TestExtremes(t *testing.T) {
	for _, ev := range []event.Event{
		{Kind: event.KindClose},
		{Kind: event.KindData, Head: []byte{}, Tail: []byte{}}, // not nil
		{Kind: event.KindData, Time: math.MinInt64, First: math.MaxInt64, Last: -1, Conn: event.Conn{FD: math.MinInt32, Born: math.MaxInt64}},
		{Kind: event.KindExit, Code: math.MinInt32, CPUTime: math.MinInt64, Time: math.MaxInt64},
		{Kind: event.KindOpen, Peer: netip.MustParseAddrPort("10.0.0.1:80")},
		{Kind: event.KindOpen, Peer: netip.AddrPortFrom(netip.Addr{}, 80)},
		{Kind: event.KindTime, Syscall: -1, Spent: event.Times{event.NumSpent - 1: -5}},
		{Kind: event.KindLost, Count: math.MaxUint64, Flags: math.MaxUint16},
		{Kind: event.KindRequest, Disk: &event.GuestDisk{}},
		{Kind: event.KindRequest, Disk: &event.GuestDisk{Images: slices.Repeat([]string{"x"}, maxList)}},
		{Kind: event.KindRequest, Request: event.Request{Layers: event.Layers{event.NumLayers - 1: math.MinInt64}, Offset: math.MaxUint64}},
	} {
		same(t, roundTrip(t, &ev, math.MinInt64), ev)
	}
}

func TestEventsOfNewerVersions(t *testing.T) {
	read := func(b []byte) error {
		c := cursor{b: b}
		c.event(new(event.Event), 0, names{})
		return c.err
	}
	good := appendEvent(nil, &event.Event{Kind: event.KindFork, TGID: 1}, 0)
	qt.Assert(t, qt.IsNil(read(good)))
	kind := append([]byte{byte(lastKind) + 1}, good[1:]...)
	err := read(kind)
	qt.Check(t, qt.ErrorIs(err, ErrNewer))
	qt.Check(t, qt.ErrorMatches(err, `made by a newer dtagent than this one, which cannot read it: event of kind 11`))
	component := append([]byte{good[0], 200}, good[2:]...)
	qt.Check(t, qt.ErrorIs(read(component), ErrNewer))
	request := appendEvent(nil, &event.Event{Kind: event.KindRequest, Request: event.Request{Bytes: 1}}, 0)
	qt.Assert(t, qt.IsNil(read(request)))
	for _, bits := range []uint64{1 << event.NumLayers, requestEnd} {
		b := binary.AppendUvarint(request[:len(request)-4:len(request)-4], bits)
		qt.Check(t, qt.ErrorIs(read(append(b, 0, 0, 0)), ErrNewer))
	}
	disk := appendEvent(nil, &event.Event{Kind: event.KindRequest, Disk: &event.GuestDisk{Images: []string{"a"}}}, 0)
	for n := range disk {
		qt.Check(t, qt.ErrorIs(read(disk[:n]), ErrDamaged))
	}
	texts := bytes.Replace(disk, []byte{0, 0, 9}, []byte{0, 0, 10}, 1)
	qt.Check(t, qt.ErrorIs(read(texts), ErrNewer))
	field := binary.AppendUvarint([]byte{byte(event.KindFork), 0, 0}, 1<<numFields)
	qt.Check(t, qt.ErrorIs(read(field), ErrNewer))
	for n := range good {
		qt.Check(t, qt.ErrorIs(read(good[:n]), ErrDamaged))
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := names{}
	for i := range 2 * maxNames {
		n.of([]byte{byte(i), byte(i >> 8)})
	}
	n.of(make([]byte, maxName+1))
	qt.Assert(t, qt.HasLen(n, maxNames))
}
