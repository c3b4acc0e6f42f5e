//go:build linux

package tapdisk_test

import (
	"embed"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/testenv/capture/strace"
	"github.com/xenserver/dtagent/testenv/tapdisk"
)

//go:embed testdata/*.zst
var recordings embed.FS // a test in a virtual machine has no other files

// recorded are the system calls of the real tapdisk: see testdata/README.md.
func recorded(t *testing.T, name string) (steps []step) {
	t.Helper()
	f, err := recordings.Open("testdata/" + name + ".strace.zst")
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	z, err := zstd.NewReader(f)
	qt.Assert(t, qt.IsNil(err))
	defer z.Close()
	records, _, err := strace.ReadAll(z)
	qt.Assert(t, qt.IsNil(err))
	for _, r := range records {
		if r.Kind == strace.Exit {
			steps = append(steps, recordedStep(t, r.Call))
		}
	}
	return steps
}

var (
	descriptor = regexp.MustCompile(`^(\d+)<(.*)>$`)
	inSet      = regexp.MustCompile(`\(in \[([^\]]*)\]`)
	timespec   = regexp.MustCompile(`tv_sec=(\d+), tv_nsec=(\d+)`)
	oneIocb    = regexp.MustCompile(`\{aio_data=(\w+), aio_lio_opcode=IOCB_CMD_(\w+), aio_fildes=\d+<[^>]*>, aio_buf=(?:0x(\w+)|"[^"]*"\.*), aio_nbytes=(\d+), aio_offset=(\d+), aio_flags=IOCB_FLAG_RESFD, aio_resfd=\d+<anon_inode:\[(\w+)\]>\}`)
)

func recordedStep(t *testing.T, c *strace.Call) step {
	t.Helper()
	s := step{Failed: c.Errno}
	names := map[string]string{} // of descriptors, by number
	name := func(arg string) string {
		m := descriptor.FindStringSubmatch(arg)
		if m == nil {
			t.Fatalf("%s: no descriptor: %s", c.Name, arg)
		}
		switch m[2] {
		case "/tap/xen/ev_in":
			names[m[1]] = "evtchn"
		case "/tap/xen/ev_out":
			names[m[1]] = "notify"
		case "anon_inode:[eventfd]":
			names[m[1]] = "eventfd"
		default:
			names[m[1]] = "other"
		}
		return names[m[1]]
	}
	arg := func(i int) string { return string(c.Args[i]) }
	switch c.Name {
	case "pselect6":
		s.What = "select"
		for a := range strings.FieldsSeq(strings.Trim(arg(1), "[]")) {
			s.Watched = append(s.Watched, name(a))
		}
		if m := inSet.FindStringSubmatch(string(c.Result)); m != nil {
			var ready []string
			for n := range strings.FieldsSeq(m[1]) {
				ready = append(ready, names[n])
			}
			s.Ready = readiness(ready)
		}
		m := timespec.FindStringSubmatch(arg(4))
		sec, _ := strconv.ParseInt(m[1], 10, 64)
		ns, _ := strconv.ParseInt(m[2], 10, 64)
		s.Timeout = sec*1e9 + ns
	case "read":
		s.What = map[string]string{"evtchn": "kick", "eventfd": "aio"}[name(arg(0))]
		if s.What == "aio" {
			text, err := strconv.Unquote(octal(arg(1)))
			qt.Assert(t, qt.IsNil(err))
			s.Count = uint64(text[0])
		}
	case "write":
		s.What = map[string]string{"other": "unmask", "notify": "wake"}[name(arg(0))] // that to the device is stood in for
	case "ioctl":
		s.What = map[string]string{"IOCTL_GNTDEV_GRANT_COPY": "copy", "IOCTL_EVTCHN_NOTIFY": "notify"}[arg(1)]
	case "mmap":
		s.What = "mmap"
	case "io_submit":
		s.What = "submit"
		for _, m := range oneIocb.FindAllStringSubmatch(arg(2), -1) {
			n, _ := strconv.ParseInt(m[4], 10, 64)
			at, _ := strconv.ParseInt(m[5], 10, 64)
			buf, _ := strconv.ParseUint(m[3], 16, 64) // 0 where its content was printed
			s.Iocbs = append(s.Iocbs, iocb{Op: m[2], Bytes: n, Vectors: 1, Offset: at, Data: m[1] != "0", Resfd: m[6], Buf: buf})
		}
		want, err := strconv.Atoi(arg(1))
		qt.Assert(t, qt.IsNil(err))
		qt.Assert(t, qt.Equals(len(s.Iocbs), want), qt.Commentf("%s", arg(2)))
	}
	if s.What == "" {
		t.Fatalf("what is %s(%v) for?", c.Name, c.Args)
	}
	return s
}

var octals = regexp.MustCompile(`\\([0-7]{1,3})`)

// octal makes of strace's escapes those of Go, which have three digits.
func octal(s string) string {
	return octals.ReplaceAllStringFunc(s, func(m string) string {
		n, _ := strconv.ParseUint(m[1:], 8, 8)
		return fmt.Sprintf(`\%03o`, n)
	})
}

// word is a step as the grammar has it.
func (s *step) word() string {
	switch {
	case s.What != "select":
		return s.What
	case s.Timeout == 0:
		return "select 0: " + s.Ready
	}
	return "select: " + s.Ready
}

// pairs counts what follows what.
func pairs(steps []step) map[string]int {
	out := map[string]int{}
	for i := 1; i < len(steps); i++ {
		out[steps[i-1].word()+" > "+steps[i].word()]++
	}
	return out
}

// figures are how many there are of a request.
type figures struct {
	requests                                                       int // Copies: of each there is one
	metadata, data, submits, kicks, notifications, selects, events float64
}

func figuresOf(steps []step) (f figures) {
	for _, s := range steps {
		switch s.What {
		case "copy":
			f.requests++
		case "submit":
			f.submits++
			for _, c := range s.Iocbs {
				if c.Bytes == 512 {
					f.metadata++
				} else {
					f.data += float64(c.Vectors)
				}
			}
		case "kick":
			f.kicks++
		case "notify":
			f.notifications++
		case "select":
			f.selects++
		case "aio":
			f.events += float64(s.Count)
		}
	}
	for _, v := range []*float64{&f.metadata, &f.data, &f.submits, &f.kicks, &f.notifications, &f.selects, &f.events} {
		*v /= float64(f.requests)
	}
	return f
}

// explained are what the stand-in did and the recorded tapdisk did not while it was
// recorded, though it would: the recorded guest was always there in time, and nothing
// was in its way.
var explained = []string{
	"(aio|submit|copy) > select 0: .*",            // answered, but the guest did not ask to be told: it is still at others
	"aio > select: .*",                            // what the eventfd counts was taken from the ring before
	"wake > select 0: aio",                        // the guest has not come to put more into the ring
	"select 0: aio > aio",                         //
	"select 0:  > select( 0)?: .*",                // the ring had nothing new
	"select 0:  > (copy|mmap)",                    // the guest has put something there without a kick
	"aio > notify",                                // only writes were done, and nothing is to be submitted
	"unmask > (mmap|copy|notify|select( 0)?: .*)", // what comes first depends on what the guest asks for
	"(mmap|copy) > mmap",                          // more buffers than ever before
	"mmap > .*",
}

// check asserts what holds for every sequence of steps of a tapdisk.
func check(t *testing.T, steps []step) {
	t.Helper()
	submitted, done := 0, 0
	bad := func(i int, why string) {
		t.Helper()
		from, to := max(0, i-3), min(len(steps), i+2)
		t.Fatalf("step %d: %s: %+v", i, why, steps[from:to])
	}
	for i, s := range steps {
		next := ""
		if i+1 < len(steps) {
			next = steps[i+1].What
		}
		switch s.What {
		case "select":
			counts := map[string]int{}
			for _, w := range s.Watched {
				counts[w]++
			}
			if counts["eventfd"] != 2 || counts["evtchn"] != 1 || counts["other"] < 5 {
				bad(i, "watches something else")
			}
			if s.Timeout > 600e9 || s.Timeout > 10e9 && submitted > done {
				bad(i, "sleeps for too long")
			}
			if next != "" && s.Ready != "" && next != map[string]string{"aio": "aio", "kick": "kick", "aio kick": "aio"}[s.Ready] {
				bad(i, "does not look at what is ready")
			}
		case "kick":
			if next != "" && next != "unmask" {
				bad(i, "does not unmask the event channel")
			}
		case "notify":
			if next != "" && next != "wake" || s.Failed != "ENOTTY" {
				bad(i, "what is that notification")
			}
		case "wake":
			if next != "" && next != "select" {
				bad(i, "the guest is told in the midst of an iteration")
			}
		case "aio":
			if done += int(s.Count); s.Count == 0 || done > submitted {
				bad(i, "nothing was done")
			}
		case "copy":
			if s.Failed != "ENOTTY" {
				bad(i, "there is no Xen here")
			}
		case "submit":
			if len(s.Iocbs) == 0 || len(s.Iocbs) > 402 {
				bad(i, "so many at once")
			}
			submitted += len(s.Iocbs)
			for _, c := range s.Iocbs {
				ok := c.Data && c.Resfd == "eventfd" && c.Offset%512 == 0
				switch c.Bytes {
				case 512: // the bitmap comes right before the data
					ok = ok && (c.Offset+512)%4096 == 0 && c.Buf%512 == 0
				default:
					ok = ok && c.Bytes%4096 == 0 && c.Offset%4096 == 0 && c.Buf%4096 == 0
				}
				if !ok || (c.Vectors > 1) != strings.HasSuffix(c.Op, "V") || c.Vectors > 8 {
					bad(i, fmt.Sprintf("iocb %+v", c))
				}
			}
		case "mmap", "unmask":
		default:
			bad(i, "a call that a tapdisk does not make")
		}
	}
}

// checkCopies asserts that what is copied is what is read and written.
func checkCopies(t *testing.T, d *tapdisk.Disk, steps []step) {
	t.Helper()
	buffers := map[uint64]bool{} // pages
	for _, s := range steps {
		for i, g := range s.Copies {
			qt.Assert(t, qt.Equals(g.From, uint32(d.Domid)))
			qt.Assert(t, qt.Equals(g.Local, s.Copies[0].Local+uint64(i)*4096), qt.Commentf("%+v", s.Copies))
			qt.Assert(t, qt.Equals(s.Copies[0].Local%4096, 0))
			qt.Assert(t, qt.Equals(g.Offset, 0))
			qt.Assert(t, qt.Equals(g.Len, 4096))
			buffers[g.Local] = true
		}
	}
	for _, s := range steps {
		for _, c := range s.Iocbs {
			if c.Bytes > 512 {
				qt.Assert(t, qt.IsTrue(buffers[c.Buf]), qt.Commentf("%+v", c))
			}
		}
	}
}

func TestRecordedShape(t *testing.T) {
	for _, name := range []string{"depth1", "depth16"} {
		check(t, recorded(t, name))
	}
}

var ready = regexp.MustCompile(`:( aio)?( kick)?`)

func TestShape(t *testing.T) {
	grammar := map[string]int{}
	for _, name := range []string{"depth1", "depth16"} {
		for p, n := range pairs(recorded(t, name)) {
			grammar[p] += n
		}
	}
	known := regexp.MustCompile("^(" + strings.Join(explained, "|") + ")$")
	for _, depth := range []struct {
		n       int
		written float64 // share of the pages that the recorded image had where it was read
		l       tapdisk.Load
	}{
		{1, 0.86, tapdisk.Load{Requests: 300, Reads: 1}},
		{16, 0.77, tapdisk.Load{Requests: 2000, Depth: 16, Reads: 0.69, Writes: 0.31}},
	} {
		t.Run(fmt.Sprint(depth.n), func(t *testing.T) {
			real := recorded(t, fmt.Sprintf("depth%d", depth.n))
			// 256 blocks, all of which it has. What is written was written before.
			name := filepath.Join(t.TempDir(), "g.vhd")
			qt.Assert(t, qt.IsNil(tapdisk.CreateVHD(name, tapdisk.Content{Size: 512 << 20, Blocks: 1, Sectors: depth.written})))
			d := start(t, tapdisk.Options{Domid: 6, Type: tapdisk.VHD, Image: name})
			l := depth.l
			l.Random, l.Span = true, 512<<20
			if l.Writes > 0 {
				load(t, d, tapdisk.Load{Requests: 800, Depth: 16, Random: true, Span: l.Span, Writes: 1})
			}
			var all []tapdisk.Request
			steps := traceSteps(t, d, func() { all = load(t, d, l) })
			check(t, steps)
			checkCopies(t, d, steps)

			here := pairs(steps)
			for _, p := range slices.Sorted(maps.Keys(here)) {
				if grammar[p] > 0 {
					continue
				}
				t.Logf("%d times, never recorded: %s", here[p], p)
				qt.Check(t, qt.IsTrue(known.MatchString(p)), qt.Commentf("%s", p))
			}
			// What is ready at once, and so what follows, depends on how fast everything is.
			usual := map[string]bool{}
			for p := range here {
				usual[ready.ReplaceAllString(p, ":")] = true
			}
			for p, n := range pairs(real) {
				if n*100 > len(real) && !strings.HasPrefix(p, "select") {
					qt.Check(t, qt.IsTrue(usual[ready.ReplaceAllString(p, ":")]), qt.Commentf("recorded %d times: %s", n, p))
				}
			}

			want, got := figuresOf(real), figuresOf(steps)
			t.Logf("recorded %+v", want)
			t.Logf("stand-in %+v", got)
			near := func(what string, got, want, by float64) {
				t.Helper()
				qt.Check(t, qt.IsTrue(got > want-by && got < want+by), qt.Commentf("%s: %.3f, recorded %.3f", what, got, want))
			}
			qt.Check(t, qt.Equals(got.requests, len(all)))
			near("metadata", got.metadata, want.metadata, 0.06)
			near("data", got.data, want.data, 0.06)
			near("events", got.events, want.events, 0.1)
			if depth.n == 1 { // with more, it depends on how fast everything is
				near("submits", got.submits, want.submits, 0.15)
				near("notifications", got.notifications, want.notifications, 0.1)
				near("kicks", got.kicks, want.kicks, 0.9)       // fewer: Xen's merge, those of the recorded guest did not
				near("selects", got.selects, want.selects, 1.3) // one look at the ring more, when the guest is late
			}
		})
	}
}

func TestMergedShape(t *testing.T) {
	d := start(t, tapdisk.Options{Image: rawFile(t, 64<<20)})
	steps := traceSteps(t, d, func() {
		load(t, d, tapdisk.Load{Requests: 500, Depth: 32, Reads: 1, Check: true})
		load(t, d, tapdisk.Load{Requests: 500, Depth: 32, Writes: 1, Size: 45056, Check: true})
	})
	check(t, steps)
	checkCopies(t, d, steps)
	vectors, most := map[string]int{}, 0
	for _, s := range steps {
		end := int64(-1)
		op, full := "", 0
		for _, c := range s.Iocbs {
			vectors[c.Op] += c.Vectors
			most = max(most, c.Vectors)
			if c.Offset == end && c.Op == op && full < 8 {
				t.Fatalf("neighbours that are not merged: %+v", s.Iocbs)
			}
			full = c.Vectors
			end, op = c.Offset+c.Bytes, c.Op
		}
	}
	t.Log(vectors)
	qt.Check(t, qt.Equals(most, 8))
	qt.Check(t, qt.IsTrue(vectors["PREADV"] > 250), qt.Commentf("%v", vectors))
	qt.Check(t, qt.IsTrue(vectors["PWRITEV"] > 250), qt.Commentf("%v", vectors))
	qt.Check(t, qt.Equals(vectors["PREAD"]+vectors["PREADV"], 500))
}
