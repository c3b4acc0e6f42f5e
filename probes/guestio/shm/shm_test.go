//go:build linux

package shm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// counters makes a file of struct stats: n in each place its offset.
func countersFile() []byte {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint32(b, 1)
	for at := 8; at < 96; at += 8 {
		binary.LittleEndian.PutUint64(b[at:], uint64(at))
	}
	return b
}

func ringFile(text string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, uint64(crc32.ChecksumIEEE([]byte(text)))), text...)
}

const ringText = "nr_ents 32\nreq prod 4294967295 cons -3 event 7\nrsp prod 4294967290 pvt -6 event 1\n"

func TestCounters(t *testing.T) {
	c, err := ParseCounters(countersFile())
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(c, Counters{
		Outstanding: 8, Read: Requests{16, 24, 32, 40 * time.Microsecond}, Write: Requests{48, 56, 64, 72 * time.Microsecond}, Errors: 80,
	}))
	qt.Check(t, qt.Equals(c.InFlight(), 0))
	c.Read.Submitted = 27
	qt.Check(t, qt.Equals(c.InFlight(), 3))
	for _, bad := range [][]byte{nil, countersFile()[:95], append([]byte{2, 0, 0, 0}, countersFile()[4:]...)} {
		_, err := ParseCounters(bad)
		qt.Check(t, qt.ErrorIs(err, ErrForm))
	}
	b := countersFile()
	binary.LittleEndian.PutUint64(b[40:], math.MaxUint64)
	c, err = ParseCounters(b)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(c.Read.Time > 0))
}

func TestStatistics(t *testing.T) {
	b := make([]byte, 8*14)
	for i := range 14 {
		binary.LittleEndian.PutUint64(b[8*i:], uint64(i))
	}
	s, err := ParseStatistics(b)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(s, Statistics{
		Outstanding: 2, Reads: 4, ReadTime: 6 * time.Microsecond, ReadMax: 7 * time.Microsecond,
		Writes: 9, WriteTime: 11 * time.Microsecond, WriteMax: 12 * time.Microsecond, LowMemory: true,
	}))
	_, err = ParseStatistics(b[:111])
	qt.Check(t, qt.ErrorIs(err, ErrForm))
}

func TestRing(t *testing.T) {
	r, err := ParseRing(ringFile(ringText))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(r.Size, 32))
	qt.Check(t, qt.Equals(r.Occupied(), 5))
	qt.Check(t, qt.Equals(r.Waiting(), 2)) // across the wrap of the counters
	_, err = ParseRing(append(ringFile(ringText), make([]byte, 100)...))
	qt.Check(t, qt.IsNil(err))
	torn := ringFile(ringText)
	torn[30]++
	for _, bad := range [][]byte{nil, torn, ringFile(""), ringFile("nr_ents 33" + ringText[10:]), ringFile("nr_ents 4294967296" + ringText[10:])} {
		_, err := ParseRing(bad)
		qt.Check(t, qt.ErrorIs(err, ErrForm), qt.Commentf("%q", bad))
	}
	// One that is not sane says no more than that the ring is full.
	r = Ring{Size: 32, ReqProd: 5, ReqCons: 9, RspProd: 9}
	qt.Check(t, qt.Equals(r.Occupied(), 32))
}

func TestIdle(t *testing.T) {
	file := func(idle float32) []byte {
		return binary.LittleEndian.AppendUint32([]byte{0, 0, 0, 0}, math.Float32bits(idle))
	}
	idle, err := ParseIdle(file(25))
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(idle, 0.25))
	for _, bad := range [][]byte{nil, file(-1), file(101), file(float32(math.NaN()))} {
		_, err := ParseIdle(bad)
		qt.Check(t, qt.ErrorIs(err, ErrForm))
	}
}

func TestDir(t *testing.T) {
	root := t.TempDir()
	d := Dir(root)
	write := func(name string, b []byte) {
		at := filepath.Join(root, name)
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(at), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(at, b, 0o644)))
	}
	write("td3-77/vbd-5-51712", countersFile())
	write("td3-77/vdi-3", countersFile())
	write("td3-77/nbd-3", countersFile())
	write("td3-8/vbd-6-268439552", countersFile())
	write("td3-08/vbd-6-51712", nil)
	write("td3-x/vbd-6-51712", nil)
	write("td3-9", nil) // a file
	write("vbd3-5-51712/io_ring", ringFile(ringText))
	write("vbd3-5-51712/statistics", make([]byte, 4096))
	qt.Assert(t, qt.IsNil(os.Symlink("td3-77", filepath.Join(root, "td3-10"))))
	got, more, err := d.Tapdisks()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(more, 0))
	qt.Check(t, qt.DeepEquals(got, []Tapdisk{
		{TGID: 8, VBDs: []VBD{{6, 268439552}}},
		{TGID: 77, VBDs: []VBD{{5, 51712}}, Open: true, Aside: []string{"nbd-3"}},
	}))
	c, err := d.Counters(77, VBD{5, 51712})
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(c.Errors, 80))
	_, err = d.Aside(77, "nbd-3")
	qt.Check(t, qt.IsNil(err))
	r, when, err := d.Ring(VBD{5, 51712})
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(r.Occupied(), 5))
	qt.Check(t, qt.IsTrue(when > 0))
	_, err = d.Statistics(VBD{5, 51712})
	qt.Check(t, qt.IsNil(err))

	// Nothing but files is read, and none is waited for.
	qt.Assert(t, qt.IsNil(unix.Mkfifo(filepath.Join(root, "td3-77/vbd-5-51728"), 0o644)))
	_, err = d.Counters(77, VBD{5, 51728})
	qt.Check(t, qt.ErrorMatches(err, ".*not a file"))
	qt.Assert(t, qt.IsNil(os.Symlink("vbd-5-51712", filepath.Join(root, "td3-77/vbd-5-51744"))))
	_, err = d.Counters(77, VBD{5, 51744})
	qt.Check(t, qt.IsTrue(errors.Is(err, unix.ELOOP)), qt.Commentf("%v", err))
	_, _, err = Dir(filepath.Join(root, "absent")).Tapdisks()
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestWatch(t *testing.T) {
	root := t.TempDir()
	d := Dir(root)
	w, err := d.Watch()
	qt.Assert(t, qt.IsNil(err))
	changed := func() {
		t.Helper()
		select {
		case <-w.Changed:
		case <-time.After(time.Minute):
			t.Fatal("no change seen in a minute")
		}
	}
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(root, "td3-77"), 0o755)))
	changed()
	qt.Assert(t, qt.IsNil(w.Follow(77)))
	vdi := filepath.Join(root, "td3-77", "vdi-1")
	qt.Assert(t, qt.IsNil(os.WriteFile(vdi, nil, 0o644)))
	changed()
	qt.Assert(t, qt.IsNil(os.Remove(vdi)))
	changed()
	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Join(root, "td3-77"))))
	changed()
	qt.Check(t, qt.IsNil(w.Close()))
	qt.Check(t, qt.IsNil(w.Close()))
	_, err = Dir(filepath.Join(root, "absent")).Watch()
	qt.Check(t, qt.IsNotNil(err))
}

func FuzzShm(f *testing.F) {
	f.Add(countersFile()[:96])
	f.Add(make([]byte, 112))
	f.Add(ringFile(ringText))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\xc8\x42"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCounters(b); err == nil && (c.Read.Time < 0 || c.Write.Time < 0) {
			t.Fatal(c)
		}
		if s, err := ParseStatistics(b); err == nil && (s.ReadTime < 0 || s.WriteMax < 0) {
			t.Fatal(s)
		}
		check := func(b []byte) {
			if r, err := ParseRing(b); err == nil && (r.Occupied() > r.Size || r.Waiting() > r.Size) {
				t.Fatal(r)
			}
		}
		check(b)
		check(ringFile(string(b)))
		if idle, err := ParseIdle(b); err == nil && !(idle >= 0 && idle <= 1) {
			t.Fatal(idle)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("td3-77")
	f.Add("vbd-5-51712")
	f.Add("vbd-05-1")
	f.Fuzz(func(t *testing.T, name string) {
		if tgid, ok := ParseProcess(name); ok && name != fmt.Sprintf("td3-%d", tgid) {
			t.Fatal(name)
		}
		if v, ok := parseVBD(name, "vbd-"); ok && name != fmt.Sprintf("vbd-%d-%d", v.Domid, v.Devid) {
			t.Fatal(name)
		}
	})
}
