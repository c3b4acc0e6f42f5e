package truth_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/truth"
)

func TestJoin(t *testing.T) {
	dir := t.TempDir()
	a, err := truth.NewWriter(dir, "xapi")
	qt.Assert(t, qt.IsNil(err))
	b, err := truth.NewWriter(dir, "xenopsd-xc")
	qt.Assert(t, qt.IsNil(err))
	api, send, rpc := a.ID(), a.ID(), b.ID()
	old := a.ID()
	// The number of a switch message is used twice; the later one is meant.
	a.Add(truth.Entry{ID: old, Kind: truth.Send, Name: "send q M", Keys: []string{"switch:q 1"}, Start: 1, End: 2})
	b.Add(truth.Entry{ID: rpc, Kind: truth.RPC, Name: "M", ParentKey: "switch:q 1", Start: 12, End: 13})
	a.Add(truth.Entry{ID: send, Parent: api, Kind: truth.Send, Name: "send q M", Keys: []string{"switch:q 1"}, Start: 11, End: 14})
	a.Add(truth.Entry{ID: api, Kind: truth.API, Name: "VM.start", Background: true, Start: 10, End: 20})
	future := a.ID()
	a.Add(truth.Entry{ID: future, Kind: truth.Send, Keys: []string{"switch:q 1"}, Start: 30, End: 31})
	qt.Assert(t, qt.IsNil(a.Flush()))
	qt.Assert(t, qt.IsNil(b.Flush()))

	l, err := truth.Read(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(l.Entries, 5))
	path := l.Path(rpc)
	qt.Assert(t, qt.HasLen(path, 3))
	qt.Assert(t, qt.Equals(path[0].ID, api))
	qt.Assert(t, qt.Equals(path[1].ID, send))
	qt.Assert(t, qt.IsTrue(path[2].Background))
	qt.Assert(t, qt.HasLen(l.Children(api), 1))
	qt.Assert(t, qt.HasLen(l.Roots(), 3))
	qt.Assert(t, qt.HasLen(l.Find(truth.RPC, "M"), 1))
}

func TestReadOfSeveralHosts(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	for _, dir := range []string{one, two} {
		qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o755)))
	}
	a, err := truth.NewWriter(one, "xapi")
	qt.Assert(t, qt.IsNil(err))
	b, err := truth.NewWriter(two, "stunnel")
	qt.Assert(t, qt.IsNil(err))
	asked, served := a.ID(), b.ID()
	a.Add(truth.Entry{ID: asked, Kind: truth.Client, Name: "M", Keys: []string{"tunnel:10.0.0.1 40000 3"}, Start: 1, End: 9})
	b.Add(truth.Entry{ID: served, Kind: truth.API, Name: "M", ParentKey: "tunnel:10.0.0.1 40000 3", Start: 2, End: 8})
	qt.Assert(t, qt.IsNil(a.Flush()))
	qt.Assert(t, qt.IsNil(b.Flush()))
	l, err := truth.Read(one, two)
	qt.Assert(t, qt.IsNil(err))
	path := l.Path(served)
	qt.Assert(t, qt.HasLen(path, 2))
	qt.Check(t, qt.Equals(path[0].Host, "one"))
	qt.Check(t, qt.Equals(path[1].Host, "two"))
}

// TestHostsUseTheSameKeys: numbers of messages and processes are those of a host.
func TestHostsUseTheSameKeys(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	for i, dir := range []string{one, two} {
		qt.Assert(t, qt.IsNil(os.Mkdir(dir, 0o755)))
		w, err := truth.NewWriter(dir, filepath.Base(dir))
		qt.Assert(t, qt.IsNil(err))
		start := int64(i)
		w.Add(truth.Entry{ID: w.ID(), Kind: truth.Send, Name: "send q M", Keys: []string{"switch:q 1"}, Start: 1 + start, End: 9})
		w.Add(truth.Entry{ID: w.ID(), Kind: truth.RPC, Name: "M", ParentKey: "switch:q 1", Start: 3 + start, End: 8})
		qt.Assert(t, qt.IsNil(w.Flush()))
	}
	l, err := truth.Read(one, two)
	qt.Assert(t, qt.IsNil(err))
	for _, e := range l.Find(truth.RPC, "M") {
		parent, ok := l.ByID(e.Parent)
		qt.Assert(t, qt.IsTrue(ok))
		qt.Check(t, qt.Equals(parent.Host, e.Host))
	}
}

func TestReadRefusesHalfALine(t *testing.T) {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "x.truth"), []byte(`{"id":"x`), 0o644)))
	_, err := truth.Read(dir)
	qt.Assert(t, qt.ErrorMatches(err, "truth: x.truth: .*"))
}
