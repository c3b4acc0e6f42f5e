package remote

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// TestRandomFaults puts an endpoint through restarts, a receiver that fails in
// every way, and damaged files. After each step the accounts are exact, and at
// the end each span was received or is in them as dropped.
func TestRandomFaults(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); randomFaults(t, uint64(seed)) })
	}
}

func randomFaults(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	rc := newReceiver()
	url := rc.start(t)
	answers := map[string]func(http.ResponseWriter, *http.Request, []string) bool{
		"ok": nil,
		"500": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			w.WriteHeader(500)
			return false
		},
		"hang":        func(w http.ResponseWriter, r *http.Request, ids []string) bool { <-r.Context().Done(); return false },
		"close":       func(w http.ResponseWriter, r *http.Request, ids []string) bool { panic(http.ErrAbortHandler) },
		"take, close": func(w http.ResponseWriter, r *http.Request, ids []string) bool { panic(takenThenAborted) },
		"401": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			w.WriteHeader(401)
			return false
		},
		"302": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			http.Redirect(w, r, "/login", http.StatusFound)
			return false
		},
		"odd ids are bad": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			for _, id := range ids {
				if strings.HasSuffix(id, "7f") {
					w.WriteHeader(400)
					return false
				}
			}
			return true
		},
		"flaky": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			if rand.IntN(3) > 0 {
				w.WriteHeader(503)
				return false
			}
			return true
		},
		"small": func(w http.ResponseWriter, r *http.Request, ids []string) bool {
			if len(ids) > 40 {
				w.WriteHeader(413)
				return false
			}
			return true
		},
	}
	names := []string{"ok", "500", "hang", "close", "take, close", "401", "302", "odd ids are bad", "flaky", "small"}

	o := options(url, filepath.Join(t.TempDir(), "q"))
	o.Timeout, o.Interval, o.DiskBytes = 100*time.Millisecond, 2*time.Millisecond, 60*block
	memory := seed%3 == 2
	if memory {
		o.Dir = ""
	}
	var sum export.Counters // of the ledgers before
	next := uint64(1)
	e, err := Open(o)
	qt.Assert(t, qt.IsNil(err))
	var left uint64
	closeIt := func() {
		qt.Assert(t, qt.IsNil(e.Close()))
		balanced(t, e)
		c := o.Ledger.Counters()
		// What stays is the next one's.
		left = c.Queued
		c.Produced -= c.Queued
		c.Queued = 0
		sum.Add(c)
	}
	for step := range 150 {
		switch k := rng.IntN(20); {
		case k < 11:
			n := 1 + rng.IntN(60)
			give(t, e, records(next, n))
			next += uint64(n)
		case k < 15:
			rc.setAnswer(answers[names[rng.IntN(len(names))]])
		case k < 16:
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			e.Flush(ctx)
			cancel()
		case k < 17:
			e.Configure(time.Duration(rng.IntN(5))*time.Millisecond, 1+rng.IntN(200))
		case k < 18 && step%50 == 0:
			e.Discard(export.Unsent)
		case k < 20:
			closeIt()
			if !memory {
				damage(t, rng, o.Dir)
			}
			o.Ledger = &export.Ledger{}
			e, err = Open(o)
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.Equals(o.Ledger.Counters().Recovered, left))
		}
		c := o.Ledger.Counters()
		if c.Produced != c.Sent+c.Lost()+c.Queued {
			t.Fatalf("%+v", c)
		}
	}
	rc.setAnswer(nil)
	flush(t, e)
	closeIt()

	got, _ := rc.count()
	produced := next - 1
	if sum.Produced != produced {
		t.Errorf("produced %d, in the books %d", produced, sum.Produced)
	}
	if sum.Produced != sum.Sent+sum.Lost() {
		t.Errorf("%+v", sum)
	}
	if uint64(got)+sum.Lost() < produced {
		t.Errorf("%d produced, %d received, %+v", produced, got, sum)
	}
	t.Logf("%d produced, %d received, %d sent, dropped %v", produced, got, sum.Sent, sum.DroppedByCause())
}

// damage does to one file what a loss of power can do.
func damage(t *testing.T, rng *rand.Rand, dir string) {
	frames, err := scan(dir)
	if os.IsNotExist(err) {
		return
	}
	qt.Assert(t, qt.IsNil(err))
	if len(frames) == 0 || rng.IntN(2) == 0 {
		return
	}
	path := filepath.Join(dir, frames[rng.IntN(len(frames))].name())
	b, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	if len(b) == 0 {
		return // it is damaged already
	}
	switch rng.IntN(4) {
	case 0:
		b = nil
	case 1:
		b = b[:rng.IntN(len(b))]
	case 2:
		b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(8))
	case 3:
		b = append(b, 0)
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(path, b, 0o600)))
}

// TestKill kills a process, as by kill -9, that exports while its receiver fails
// now and then. Each span that it had handed over was received or is in the
// queue.
func TestKill(t *testing.T) {
	if url := os.Getenv("DTAGENT_TEST_URL"); url != "" {
		exportForever(url, os.Getenv("DTAGENT_TEST_DIR"), os.Getenv("DTAGENT_TEST_FIRST"))
		return
	}
	self, err := os.Executable()
	qt.Assert(t, qt.IsNil(err))
	rc := newReceiver()
	rc.setAnswer(func(w http.ResponseWriter, r *http.Request, ids []string) bool {
		switch rand.IntN(4) {
		case 0:
			w.WriteHeader(500)
			return false
		case 1:
			panic(takenThenAborted)
		}
		return true
	})
	url, dir := rc.start(t), filepath.Join(t.TempDir(), "q")
	var handed []uint64
	first, left := uint64(1), 0
	for round := range 8 {
		cmd := exec.Command(self, "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "DTAGENT_TEST_URL="+url, "DTAGENT_TEST_DIR="+dir, fmt.Sprint("DTAGENT_TEST_FIRST=", first))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.IsNil(cmd.Start()))
		lines := bufio.NewScanner(out)
		n := 0
		kill := 1 + rand.IntN(200)
		for lines.Scan() {
			id, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				t.Fatalf("the process said %q", lines.Text())
			}
			handed = append(handed, id)
			first = id + 1000
			if n++; n == kill {
				go func() {
					time.Sleep(rand.N(3 * time.Millisecond))
					_ = cmd.Process.Kill()
				}()
			}
		}
		_ = cmd.Wait()
		qt.Assert(t, qt.IsTrue(n >= kill), qt.Commentf("round %d: %d of %d batches, %v", round, n, kill, cmd.ProcessState))
		ls, err := Leftovers(filepath.Dir(dir))
		qt.Assert(t, qt.IsNil(err))
		for _, l := range ls {
			left += l.Spans
		}
	}
	e := open(t, options(url, dir))
	flush(t, e)
	c := e.o.Ledger.Counters()
	qt.Check(t, qt.Equals(c.Lost(), 0), qt.Commentf("%v", c.DroppedByCause()))
	missing := 0
	for _, last := range handed {
		for id := last; id > last-batchOfKill; id-- {
			if !rc.has(id) {
				missing++
			}
		}
	}
	qt.Check(t, qt.Equals(missing, 0))
	t.Logf("%d spans handed over in 8 lives, %d found in the queue after kills, none missing", len(handed)*batchOfKill, left)
	qt.Check(t, qt.IsTrue(left > 0))
}

const batchOfKill = 5

// exportForever hands batches over and prints the last id of each when it is.
func exportForever(url, dir, first string) {
	o := options(url, dir)
	e, err := Open(o)
	if err != nil {
		fmt.Println(err)
		return
	}
	next, _ := strconv.ParseUint(first, 10, 64)
	for {
		if err := e.Export(context.Background(), records(next, batchOfKill)); err != nil {
			fmt.Println(err)
			return
		}
		next += batchOfKill
		fmt.Println(next - 1)
	}
}

// roundTrip is a receiver without a network, so that time can be that of a test.
type roundTrip func(body []byte, r *http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	return f(body, r)
}

func reply(code int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: code, Header: h, Body: http.NoBody}
}

// TestTenMinutesDown: with the defaults, nothing is lost while a receiver is
// down, the tries are few, and all arrives when it is back.
func TestTenMinutesDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		down, tries, took, news := true, 0, 0, 0
		begin := time.Now()
		var last time.Time
		e, err := Open(Options{Endpoint: "http://collector/", Encoder: &zipkin.Encoder{}, Dir: filepath.Join(t.TempDir(), "q"), Ledger: &export.Ledger{},
			Transport: roundTrip(func(body []byte, r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if down {
					tries++
					return nil, io.ErrUnexpectedEOF
				}
				took++
				last = time.Now()
				return reply(202), nil
			})})
		qt.Assert(t, qt.IsNil(err))
		for range 600 {
			was := e.o.Ledger.Health().Failing
			give(t, e, records(1, 3))
			time.Sleep(time.Second)
			if e.o.Ledger.Health().Failing != was {
				news++
			}
		}
		synctest.Wait()
		balanced(t, e)
		qt.Check(t, qt.Equals(e.Holding(), 1800))
		qt.Check(t, qt.Equals(news, 1))
		mu.Lock()
		qt.Check(t, qt.IsTrue(tries > 8 && tries < 40), qt.Commentf("%d tries", tries))
		files := e.Status().Files
		qt.Check(t, qt.IsTrue(files < 300), qt.Commentf("%d files", files))
		down = false
		mu.Unlock()
		back := time.Now()
		for e.Holding() > 0 {
			time.Sleep(time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		qt.Check(t, qt.IsTrue(last.Sub(back) <= time.Minute), qt.Commentf("%v", last.Sub(back)))
		qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 1800, Sent: 1800}))
		t.Logf("down for %v: %d tries, %d files; back: all sent after %v in %d requests", back.Sub(begin), tries, files, last.Sub(back), took)
		qt.Assert(t, qt.IsNil(e.Close()))
	})
}

// TestRetryAfter: a receiver has the pause that it asks for, up to a bound, and
// somebody who flushes does not wait for it.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		header string
		want   time.Duration
	}{{"40", 40 * time.Second}, {"86400", 5 * time.Minute}, {"Sat, 01 Jan 2000 00:01:40 GMT", 100*time.Second - 30*time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var times []time.Time
			sent := func() []time.Time {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(times)
			}
			e, err := Open(Options{Endpoint: "otlp+http://collector/", Encoder: &otlp.Encoder{}, Ledger: &export.Ledger{},
				Transport: roundTrip(func(body []byte, r *http.Request) (*http.Response, error) {
					mu.Lock()
					defer mu.Unlock()
					times = append(times, time.Now())
					if len(times) == 2 {
						return reply(200), nil
					}
					if len(times) > 2 {
						return reply(429, "Retry-After", "40"), nil
					}
					return reply(429, "Retry-After", c.header), nil
				})})
			qt.Assert(t, qt.IsNil(err))
			give(t, e, records(1, 3)) // at 2000-01-01 00:00:00, sent 30 s later
			time.Sleep(10 * time.Minute)
			qt.Assert(t, qt.HasLen(sent(), 2))
			qt.Check(t, qt.Equals(sent()[1].Sub(sent()[0]), c.want))
			give(t, e, records(4, 3))
			time.Sleep(35 * time.Second)
			qt.Assert(t, qt.HasLen(sent(), 3))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			e.Flush(ctx)
			cancel()
			qt.Check(t, qt.Equals(len(sent()), 4))
			qt.Check(t, qt.Equals(e.Holding(), 3))
			qt.Assert(t, qt.IsNil(e.Close()))
		})
	}
}

// TestSlow: a receiver that is too slow for large requests gets smaller ones, and
// larger ones again when it is fast.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		perSpan, largest := 40*time.Millisecond, 0
		o := Options{Endpoint: "http://collector/", Encoder: &zipkin.Encoder{}, Ledger: &export.Ledger{}, Dir: filepath.Join(t.TempDir(), "q"),
			Transport: roundTrip(func(body []byte, r *http.Request) (*http.Response, error) {
				spans := readGzip(t, body)
				mu.Lock()
				need := time.Duration(spans) * perSpan
				mu.Unlock()
				select {
				case <-time.After(need):
				case <-r.Context().Done():
					return nil, r.Context().Err()
				}
				mu.Lock()
				defer mu.Unlock()
				largest = max(largest, spans)
				return reply(202), nil
			})}
		e, err := Open(o)
		qt.Assert(t, qt.IsNil(err))
		for i := range 40 {
			give(t, e, records(uint64(50*i+1), 50))
		}
		time.Sleep(time.Hour)
		balanced(t, e)
		qt.Check(t, qt.Equals(e.o.Ledger.Counters(), export.Counters{Produced: 2000, Sent: 2000}))
		mu.Lock()
		qt.Check(t, qt.IsTrue(50 <= largest && largest <= 375), qt.Commentf("%d", largest)) // in 15 s
		perSpan = 0
		mu.Unlock()
		for i := range 40 {
			give(t, e, records(uint64(50*i+1), 50))
			time.Sleep(40 * time.Second)
		}
		for i := range 40 {
			give(t, e, records(uint64(50*i+1), 50))
		}
		time.Sleep(time.Hour)
		mu.Lock()
		qt.Check(t, qt.Equals(largest, 2000))
		mu.Unlock()
		qt.Assert(t, qt.IsNil(e.Close()))
	})
}

// readGzip returns how many spans a body has.
func readGzip(t *testing.T, body []byte) int {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(body))
	qt.Assert(t, qt.IsNil(err))
	var spans []json.RawMessage
	qt.Assert(t, qt.IsNil(json.NewDecoder(z).Decode(&spans)))
	return len(spans)
}

// TestClockStep: a clock that was set back does not hold up what is found.
func TestClockStep(t *testing.T) {
	dir := t.TempDir()
	rc := newReceiver()
	url := rc.start(t)
	o := options(url, dir)
	o.Interval = time.Hour
	e := open(t, o)
	give(t, e, records(1, 3))
	qt.Assert(t, qt.IsNil(e.Close()))
	frames, err := scan(dir)
	qt.Assert(t, qt.IsNil(err))
	old := frames[0].name()
	frames[0].stamp += int64(1000 * time.Hour)
	qt.Assert(t, qt.IsNil(os.Rename(filepath.Join(dir, old), filepath.Join(dir, frames[0].name()))))
	o = options(url, dir)
	e = open(t, o)
	for i := 0; e.Holding() > 0; i++ {
		qt.Assert(t, qt.IsTrue(i < 1000))
		time.Sleep(time.Millisecond)
	}
	balanced(t, e)
}
