package remote

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/zipkin"
	"golang.org/x/sys/unix"
)

// options are those of a test: short pauses, and a queue in dir.
func options(url, dir string) Options {
	return Options{Endpoint: url, Encoder: &zipkin.Encoder{}, Dir: dir, ObserverUUID: "o-1", ObserverName: "dt", Interval: 20 * time.Millisecond,
		Timeout: 2 * time.Second, BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond, Ledger: &export.Ledger{}}
}

func open(t testing.TB, o Options) *Exporter {
	t.Helper()
	e, err := Open(o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(e.Close())) })
	return e
}

// flush fails the test if not all is sent.
func flush(t testing.TB, e *Exporter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e.Flush(ctx)
	if n := e.Holding(); n != 0 {
		t.Fatalf("%d spans held: %+v", n, e.o.Ledger.Health())
	}
}

func TestSend(t *testing.T) {
	rc := newReceiver()
	dir := filepath.Join(t.TempDir(), "queues", "q")
	e := open(t, options(rc.start(t), dir))
	give(t, e, records(1, 100))
	give(t, e, records(101, 11))
	flush(t, e)
	n, requests := rc.count()
	qt.Check(t, qt.Equals(n, 111))
	qt.Check(t, qt.IsTrue(requests <= 2))
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c, export.Counters{Produced: 111, Sent: 111}))
	info, err := os.Stat(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o700))
	info, err = os.Stat(filepath.Join(dir, metaName))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o600))
	balanced(t, e)
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Assert(t, qt.IsNil(e.Close()))
	_, err = os.Stat(dir)
	qt.Check(t, qt.IsTrue(os.IsNotExist(err)), qt.Commentf("an empty queue leaves its directory"))
	f := export.AsFailure(e.Export(t.Context(), records(1, 3)), 3)
	qt.Check(t, qt.Equals(f.Lost, 3))
	qt.Check(t, qt.ErrorIs(f, ErrClosed))
}

// TestInterval: a few spans wait for the interval, as many as a request takes do
// not, and no request is larger than that.
func TestInterval(t *testing.T) {
	rc := newReceiver()
	o := options(rc.start(t), t.TempDir())
	o.Interval, o.BatchSpans = time.Hour, 50
	e := open(t, o)
	give(t, e, records(1, 49))
	time.Sleep(50 * time.Millisecond)
	qt.Assert(t, qt.Equals(e.Holding(), 49))
	balanced(t, e)
	give(t, e, records(50, 151))
	for e.Holding() >= 50 {
		time.Sleep(time.Millisecond)
	}
	rc.mu.Lock()
	qt.Check(t, qt.IsTrue(rc.largest <= 50))
	rc.mu.Unlock()
	e.Configure(time.Millisecond, 50)
	for e.Holding() > 0 {
		time.Sleep(time.Millisecond)
	}
	n, _ := rc.count()
	qt.Check(t, qt.Equals(n, 200))
}

// TestRestart: what was held is found again, sent, and gone then; what was half
// written is removed, and files of others stay.
func TestRestart(t *testing.T) {
	rc := newReceiver()
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(503); return false })
	url, dir := rc.start(t), t.TempDir()
	e := open(t, options(url, dir))
	for i := range 5 {
		give(t, e, records(uint64(10*i+1), 10))
	}
	qt.Assert(t, qt.IsNil(e.Close()))
	c := e.o.Ledger.Counters()
	qt.Assert(t, qt.Equals(c.Queued, 50))
	foreign := filepath.Join(dir, "notes.txt")
	qt.Assert(t, qt.IsNil(os.WriteFile(foreign, nil, 0o600)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, tempPrefix+"x"), []byte("half"), 0o600)))

	rc.setAnswer(nil)
	e = open(t, options(url, dir))
	c = e.o.Ledger.Counters()
	qt.Assert(t, qt.Equals(c.Recovered, 50))
	give(t, e, records(51, 1))
	flush(t, e)
	n, _ := rc.count()
	qt.Check(t, qt.Equals(n, 51))
	qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 51, Recovered: 50, Sent: 51}))
	qt.Assert(t, qt.IsNil(e.Close()))
	entries, err := os.ReadDir(dir)
	qt.Assert(t, qt.IsNil(err))
	for _, entry := range entries {
		qt.Check(t, qt.IsTrue(entry.Name() == "notes.txt" || entry.Name() == metaName), qt.Commentf("%s", entry.Name()))
	}
}

// TestDamaged: what a loss of power does to files costs the spans of those
// files, each counted, and nothing else.
func TestDamaged(t *testing.T) {
	rc := newReceiver()
	url, dir := rc.start(t), t.TempDir()
	o := options(url, dir)
	o.Interval = time.Hour
	e := open(t, o)
	for i := range 8 {
		give(t, e, records(uint64(10*i+1), 10))
	}
	qt.Assert(t, qt.IsNil(e.Close()))
	frames, err := scan(dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(frames, 8))
	path := func(i int) string { return filepath.Join(dir, frames[i].name()) }
	whole, err := os.ReadFile(path(0))
	qt.Assert(t, qt.IsNil(err))
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)/2] ^= 0x10
	qt.Assert(t, qt.IsNil(os.WriteFile(path(0), flipped, 0o600)))
	qt.Assert(t, qt.IsNil(os.Truncate(path(1), int64(len(whole)/2))))
	qt.Assert(t, qt.IsNil(os.Truncate(path(2), 0)))
	qt.Assert(t, qt.IsNil(os.WriteFile(path(3), make([]byte, len(whole)), 0o600)))
	huge, err := os.OpenFile(path(4), os.O_WRONLY, 0)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(huge.Truncate(1<<40))) // sparse
	qt.Assert(t, qt.IsNil(huge.Close()))

	e = open(t, options(url, dir))
	// One more goes while the agent runs.
	gone := false
	if os.Remove(path(5)) == nil {
		gone = true
	}
	flush(t, e)
	c := e.o.Ledger.Counters()
	n, _ := rc.count()
	if gone && c.Sent == 20 {
		qt.Check(t, qt.Equals(c.Dropped[export.Corrupt], 60))
		qt.Check(t, qt.Equals(n, 20))
	} else { // it was read before
		qt.Check(t, qt.Equals(c.Dropped[export.Corrupt], 50))
		qt.Check(t, qt.Equals(n, 30))
	}
	aside, err := os.ReadDir(filepath.Join(dir, corruptDir))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(aside, 5))
	balanced(t, e)
}

// TestBounds: what does not fit or is too old goes, the oldest first, and is
// counted.
func TestBounds(t *testing.T) {
	rc := newReceiver()
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(500); return false })
	url := rc.start(t)
	t.Run("disk", func(t *testing.T) {
		o := options(url, t.TempDir())
		o.DiskBytes, o.Interval = 10*block, time.Hour
		e := open(t, o)
		for i := range 15 {
			give(t, e, records(uint64(i+1), 1))
			balanced(t, e)
		}
		c := e.o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Dropped[export.QueueFull], 5))
		qt.Check(t, qt.Equals(c.Queued, 10))
		qt.Check(t, qt.Equals(o.Spool, nil))
		qt.Check(t, qt.Equals(e.o.Spool.Used(), 10*block))
		e.Discard(export.TooOld)
		balanced(t, e)
		qt.Check(t, qt.Equals(e.o.Spool.Used(), 0))
		c = e.o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Dropped[export.TooOld], 10))
	})
	t.Run("disk of all", func(t *testing.T) {
		spool := NewSpool(10 * block)
		var es []*Exporter
		for range 2 {
			o := options(url, t.TempDir())
			o.Spool, o.Interval = spool, time.Hour
			es = append(es, open(t, o))
		}
		for i := range 8 {
			give(t, es[0], records(uint64(i+1), 1))
		}
		for i := range 8 {
			give(t, es[1], records(uint64(i+1), 1))
		}
		qt.Check(t, qt.Equals(spool.Used(), 10*block))
		qt.Check(t, qt.Equals(es[0].Holding(), 8))
		qt.Check(t, qt.Equals(es[1].Holding(), 2))
		c := es[1].o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Dropped[export.QueueFull], 6))
	})
	t.Run("memory", func(t *testing.T) {
		o := options(url, "")
		o.MemoryBytes, o.Interval = 4000, time.Hour
		e := open(t, o)
		for i := range 50 {
			give(t, e, records(uint64(i+1), 1))
			balanced(t, e)
			qt.Assert(t, qt.IsTrue(e.Status().MemoryBytes <= 4000))
		}
		c := e.o.Ledger.Counters()
		qt.Check(t, qt.IsTrue(c.Dropped[export.QueueFull] > 0 && c.Queued > 0))
		qt.Assert(t, qt.IsNil(e.Close()))
		c = e.o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Queued, 0))
		qt.Check(t, qt.IsTrue(c.Dropped[export.Unsent] > 0))
	})
	t.Run("age", func(t *testing.T) {
		o := options(url, t.TempDir())
		o.Age = 50 * time.Millisecond
		e := open(t, o)
		give(t, e, records(1, 7))
		for e.Holding() > 0 {
			time.Sleep(time.Millisecond)
		}
		c := e.o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Dropped[export.TooOld], 7))
		qt.Check(t, qt.Equals(e.o.Ledger.Health().Failing, true))
	})
}

// TestDiskFull: with no space on disk spans are held in memory and still sent,
// and go to disk when there is space again.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs the privilege to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { qt.Check(t, qt.IsNil(unix.Unmount(mnt, 0))) })
	rc := newReceiver()
	down := func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(500); return false }
	rc.setAnswer(down)
	o := options(rc.start(t), filepath.Join(mnt, "q"))
	o.MemoryBytes = 16 << 10
	e := open(t, o)
	for i := range 100 {
		give(t, e, records(uint64(i+1), 1))
	}
	balanced(t, e)
	st := e.Status()
	qt.Check(t, qt.StringContains(st.DiskError, "no space"))
	qt.Check(t, qt.IsTrue(st.Files > 5 && st.MemoryBytes > 10<<10), qt.Commentf("%+v", st))
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.IsTrue(c.Dropped[export.DiskFull] > 0))
	qt.Check(t, qt.Equals(c.Lost(), c.Dropped[export.DiskFull]))
	// Space again: what was in memory goes to disk, as far as it fits.
	qt.Assert(t, qt.IsNil(unix.Mount("tmpfs", mnt, "tmpfs", unix.MS_REMOUNT, "size=1m")))
	give(t, e, records(101, 1))
	qt.Check(t, qt.Equals(e.Status().MemoryBytes, 0))
	qt.Check(t, qt.Equals(e.Status().DiskError, ""))
	balanced(t, e)
	// Full once more, and the receiver works.
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(mnt, "fill"), nil, 0o600)))
	f, err := os.OpenFile(filepath.Join(mnt, "fill"), os.O_WRONLY, 0)
	qt.Assert(t, qt.IsNil(err))
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	qt.Assert(t, qt.ErrorIs(err, unix.ENOSPC))
	qt.Assert(t, qt.IsNil(f.Close()))
	give(t, e, records(102, 50))
	rc.setAnswer(nil)
	flush(t, e)
	balanced(t, e)
	n, _ := rc.count()
	c = e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(uint64(n), c.Sent))
	qt.Check(t, qt.Equals(c.Produced, 151))
	t.Logf("%+v", c)
	qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(mnt, "fill"))))
}

// TestUnusableDirectory: no directory is no reason not to send, and it is taken
// into use when it can be.
func TestUnusableDirectory(t *testing.T) {
	rc := newReceiver()
	parent := t.TempDir()
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(parent, "file"), nil, 0o600)))
	o := options(rc.start(t), filepath.Join(parent, "file", "q"))
	o.Interval = time.Hour
	e := open(t, o)
	give(t, e, records(1, 3))
	qt.Check(t, qt.Equals(e.Status().Files, 0))
	qt.Check(t, qt.StringContains(e.Status().DiskError, "not a directory"))
	flush(t, e)
	qt.Assert(t, qt.IsNil(os.Remove(filepath.Join(parent, "file"))))
	give(t, e, records(4, 3))
	qt.Check(t, qt.Equals(e.Status().Files, 1))
	balanced(t, e)
	// Somebody deletes it under us.
	qt.Assert(t, qt.IsNil(os.RemoveAll(o.Dir)))
	give(t, e, records(7, 3))
	give(t, e, records(10, 3))
	qt.Check(t, qt.Equals(e.Status().MemoryBytes, 0))
	flush(t, e)
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c.Dropped[export.Corrupt], 3))
	qt.Check(t, qt.Equals(c.Sent, 9))
}

func TestInUse(t *testing.T) {
	rc := newReceiver()
	o := options(rc.start(t), t.TempDir())
	e := open(t, o)
	_, err := Open(o)
	qt.Assert(t, qt.ErrorIs(err, ErrInUse))
	qt.Assert(t, qt.IsNil(e.Close()))
	open(t, o)
}

func TestBadOptions(t *testing.T) {
	for _, u := range []string{"", "://", "nothing", "http://", "ftp://h/", "https:///x", "http://u:secret@/", "http://u:secret@h:x%/", "otlp+file:///x"} {
		_, err := Open(Options{Endpoint: u, Encoder: &zipkin.Encoder{}})
		qt.Assert(t, qt.IsNotNil(err))
		qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")), qt.Commentf("%v", err))
	}
	_, err := Open(Options{Endpoint: "http://h/"})
	qt.Check(t, qt.IsNotNil(err))
}

// TestLeftovers: queues that nobody has are listed with all that is needed to
// deliver them; empty ones go.
func TestLeftovers(t *testing.T) {
	rc := newReceiver()
	url := "http://user:secret@" + strings.TrimPrefix(rc.start(t), "http://")
	parent := t.TempDir()
	dirs := map[string]bool{}
	for i := range 3 {
		o := options(url, DirFor(parent, fmt.Sprintf("6e2b8a3c-0000-4000-8000-00000000000%d", i), url))
		o.Interval, o.ObserverName = time.Hour, fmt.Sprint("observer ", i)
		qt.Check(t, qt.IsFalse(strings.Contains(o.Dir, "secret")))
		dirs[o.Dir] = true
		e := open(t, o)
		if i > 0 {
			give(t, e, records(uint64(100*i+1), 10*i))
		}
		if i < 2 {
			qt.Assert(t, qt.IsNil(e.Close()))
		}
	}
	qt.Check(t, qt.HasLen(dirs, 3))
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(parent, "empty"), 0o700)))
	broken := filepath.Join(parent, "broken")
	qt.Assert(t, qt.IsNil(os.Mkdir(broken, 0o700)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(broken, (&frame{stamp: 5, seq: 1, spans: 9}).name()), []byte("x"), 0o600)))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(broken, metaName), []byte("{"), 0o600)))
	ls, err := Leftovers(parent)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(ls, 2))
	qt.Check(t, qt.Equals(ls[0].Endpoint, url))
	qt.Check(t, qt.Equals(ls[0].Encoder, "zipkin"))
	qt.Check(t, qt.Equals(ls[0].ObserverName, "observer 1"))
	qt.Check(t, qt.Equals(ls[0].Spans, 10))
	qt.Check(t, qt.IsNotNil(ls[1].Err))
	qt.Check(t, qt.Equals(ls[1].Spans, 9))
	qt.Check(t, qt.IsNil(ls[1].Remove()))
	_, err = os.Stat(filepath.Join(parent, "empty"))
	qt.Check(t, qt.IsTrue(os.IsNotExist(err)))

	o := options(ls[0].Endpoint, ls[0].Dir)
	e := open(t, o)
	flush(t, e)
	qt.Assert(t, qt.IsNil(e.Close()))
	n, _ := rc.count()
	qt.Check(t, qt.Equals(n, 10))
	ls, err = Leftovers(parent)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(ls, 0))
	ls, err = Leftovers(filepath.Join(parent, "none"))
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(ls, 0))
}

func TestDirFor(t *testing.T) {
	base := DirFor("/p", "U-1", "http://u:a@h/x")
	qt.Check(t, qt.Equals(DirFor("/p", "U-1", "http://u:b@h/x"), base))
	qt.Check(t, qt.Equals(DirFor("/p", "u-1", "http://u:b@h/x"), base))
	for _, other := range []string{DirFor("/p", "U-2", "http://u:a@h/x"), DirFor("/p", "U-1", "http://v:a@h/x"), DirFor("/p", "U-1", "otlp+http://u:a@h/x"),
		DirFor("/p", "../../etc", "http://h"), DirFor("/p", "", "http://h"), DirFor("/p", strings.Repeat("x", 1000), "%zz")} {
		qt.Check(t, qt.Not(qt.Equals(other, base)))
		qt.Check(t, qt.Equals(filepath.Dir(other), "/p"))
		qt.Check(t, qt.IsTrue(len(filepath.Base(other)) < 128))
	}
}

// TestDiscard: what is held goes at once, also when a receiver hangs.
func TestDiscard(t *testing.T) {
	rc := newReceiver()
	hangs := make(chan struct{}, 10)
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool {
		hangs <- struct{}{}
		<-r.Context().Done()
		return false
	})
	o := options(rc.start(t), t.TempDir())
	o.Timeout = time.Hour
	e := open(t, o)
	give(t, e, records(1, 10))
	<-hangs
	give(t, e, records(11, 10))
	e.Discard(export.Unsent)
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c.Dropped[export.Unsent], 20))
	balanced(t, e)
	// And Close does not wait for it either.
	give(t, e, records(21, 10))
	<-hangs
	qt.Assert(t, qt.IsNil(e.Close()))
	c = e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c.Queued, 10))
}

// TestSearch: spans that a receiver refuses do not take the others with them.
func TestSearch(t *testing.T) {
	for _, code := range []int{400, 413} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			rc := newReceiver()
			bad := map[string]bool{fmt.Sprintf("%016x", 77): true, fmt.Sprintf("%016x", 1500): true}
			rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool {
				for _, id := range ids {
					if bad[id] || code == 413 && len(ids) > 300 {
						http.Error(w, "bad \x1b[31mspan\r\n "+id, code)
						return false
					}
				}
				return true
			})
			o := options(rc.start(t), t.TempDir())
			o.Interval = time.Hour
			e := open(t, o)
			for i := range 20 {
				give(t, e, records(uint64(100*i+1), 100))
			}
			flush(t, e)
			c := e.o.Ledger.Counters()
			n, requests := rc.count()
			qt.Check(t, qt.Equals(n, 1998))
			qt.Check(t, qt.Equals(c, export.Counters{Produced: 2000, Sent: 1998, Dropped: [export.NumCauses]uint64{export.Rejected: 2}}))
			t.Logf("%d requests", requests)
			qt.Check(t, qt.IsTrue(requests < 120))
			qt.Check(t, qt.IsFalse(strings.ContainsAny(e.o.Ledger.Health().LastError, "\x1b\r\n")))
		})
	}
	t.Run("all", func(t *testing.T) {
		rc := newReceiver()
		rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(400); return false })
		e := open(t, options(rc.start(t), t.TempDir()))
		give(t, e, records(1, 5000))
		flush(t, e)
		c := e.o.Ledger.Counters()
		qt.Check(t, qt.Equals(c.Dropped[export.Rejected], 5000))
		_, requests := rc.count()
		qt.Check(t, qt.IsTrue(requests < 3*maxSearch), qt.Commentf("%d requests", requests))
	})
}

// TestMerge: while the receiver is down small files become larger ones, and no
// span is lost by it.
func TestMerge(t *testing.T) {
	rc := newReceiver()
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(500); return false })
	o := options(rc.start(t), t.TempDir())
	e := open(t, o)
	for i := range 1000 {
		give(t, e, records(uint64(3*i+1), 3))
	}
	for i := 0; e.Status().Files >= 3*mergeFiles; i++ {
		qt.Assert(t, qt.IsTrue(i < 1000), qt.Commentf("%+v", e.Status()))
		time.Sleep(10 * time.Millisecond)
	}
	rc.setAnswer(nil)
	flush(t, e)
	balanced(t, e)
	n, _ := rc.count()
	qt.Check(t, qt.Equals(n, 3000))
	qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 3000, Sent: 3000}))
}

// TestLargeSpans: a request has no more bytes than it may, unless one span has.
func TestLargeSpans(t *testing.T) {
	var sizes []int64
	o := options("http://h/", t.TempDir())
	o.Transport = roundTrip(func(body []byte, r *http.Request) (*http.Response, error) {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		n, err := io.Copy(io.Discard, z)
		sizes = append(sizes, n)
		return reply(202), err
	})
	e := open(t, o)
	batch := records(1, 6)
	for i := range batch { // the reason is in two tags
		batch[i].Span.Error = strings.Repeat("e", maxBody/5)
	}
	batch[4].Span.Error = strings.Repeat("x", maxBody)
	give(t, e, batch)
	flush(t, e)
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 6, Sent: 6}))
	large := 0
	for _, n := range sizes {
		if n > maxBody {
			large++
		}
	}
	qt.Check(t, qt.Equals(large, 1), qt.Commentf("%d", sizes))
	qt.Check(t, qt.IsTrue(len(sizes) >= 3))
}

func TestEncodeError(t *testing.T) {
	e := open(t, Options{Endpoint: "http://h/", Encoder: &failing{}, Ledger: &export.Ledger{}})
	give(t, e, records(1, 10))
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c.Dropped[export.EncodeError], 10))
	balanced(t, e)
}

type failing struct{ zipkin.Encoder }

func (*failing) Encode(dst []byte, batch []*export.Record) ([]byte, int, error) {
	return dst, len(batch), errors.New("no")
}

// TestLog: a failure is told once, and so is its end.
func TestLog(t *testing.T) {
	rc := newReceiver()
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool { w.WriteHeader(500); return false })
	var log bytes.Buffer
	o := options(strings.Replace(rc.start(t), "http://", "http://user:secret@", 1), t.TempDir())
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	e := open(t, o)
	for round := range 2 {
		give(t, e, records(uint64(round*100+1), 20))
		for before, n := 0, 0; n < before+10; {
			time.Sleep(time.Millisecond)
			if _, n = rc.count(); before == 0 {
				before = n
			}
		}
		answer := rc.answer
		rc.setAnswer(nil)
		flush(t, e)
		rc.setAnswer(answer)
	}
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Check(t, qt.Equals(strings.Count(log.String(), "endpoint fails"), 2), qt.Commentf("%s", &log))
	qt.Check(t, qt.Equals(strings.Count(log.String(), "endpoint works again"), 2))
	qt.Check(t, qt.Equals(strings.Count(log.String(), "\n"), 4))
	qt.Check(t, qt.IsFalse(strings.Contains(log.String(), "secret")))
}
