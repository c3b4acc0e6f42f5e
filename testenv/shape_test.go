//go:build linux

package testenv_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/capture/strace"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// recorded are the system calls of the real toolstack while it starts a VM.
func recorded(t *testing.T) []*strace.Call {
	t.Helper()
	f, err := os.Open("capture/testdata/lifecycle-on.strace.zst")
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	z, err := zstd.NewReader(f)
	qt.Assert(t, qt.IsNil(err))
	defer z.Close()
	return finished(t, z)
}

func finished(t *testing.T, r io.Reader) []*strace.Call {
	t.Helper()
	records, _, err := strace.ReadAll(r)
	qt.Assert(t, qt.IsNil(err))
	var out []*strace.Call
	for _, r := range records {
		if r.Kind == strace.Exit {
			out = append(out, r.Call)
		}
	}
	return out
}

// watch runs strace on processes of a dom0 while f runs.
func watch(t *testing.T, d *testenv.Dom0, names []string, f func()) []*strace.Call {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace")
	}
	out := filepath.Join(t.TempDir(), "strace")
	args := []string{"-f", "-ttt", "-yy", "-s", "70000", "-o", out, "-e", "trace=!futex,nanosleep,clock_nanosleep,rt_sigprocmask,rt_sigreturn,mmap,munmap,mprotect,madvise"}
	for _, n := range names {
		args = append(args, "-p", strconv.Itoa(d.PID(n)))
	}
	cmd := exec.Command(path, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	qt.Assert(t, qt.IsNil(cmd.Start()))
	// strace says nothing when it is ready, but traced threads show it.
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if traced(names, d) {
			break
		}
		if time.Since(begin) > 10*time.Second {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("strace does not attach: %s", &said)
		}
	}
	f()
	qt.Assert(t, qt.IsNil(cmd.Process.Signal(syscall.SIGINT)))
	_ = cmd.Wait() // it ends by the signal
	b, err := os.ReadFile(out)
	qt.Assert(t, qt.IsNil(err))
	return finished(t, bytes.NewReader(b))
}

func traced(names []string, d *testenv.Dom0) bool {
	for _, n := range names {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID(n)))
		for _, s := range tasks {
			b, err := os.ReadFile(s)
			if err != nil || strings.Contains(string(b), "TracerPid:\t0\n") {
				return false
			}
		}
	}
	return true
}

// moved is what a read or write moved.
func moved(c *strace.Call) []byte {
	if len(c.Args) < 2 {
		return nil
	}
	b, _, _ := c.Args[1].Bytes()
	return b
}

func fdOf(c *strace.Call) int32 {
	if len(c.Args) == 0 {
		return -1
	}
	fd, ok := c.Args[0].FD()
	if !ok {
		n, ok := c.Args[0].Int()
		if !ok {
			return -1
		}
		return int32(n)
	}
	return fd.Num
}

func asks(c *strace.Call) int64 {
	if len(c.Args) < 3 {
		return -1
	}
	n, _ := c.Args[2].Int()
	return n
}

// onConnection are the calls on the connection on which a request with that text in
// its body came, up to that body, by its thread.
func onConnection(t *testing.T, calls []*strace.Call, body string) (shape []string, header []byte, length int) {
	t.Helper()
	end := slices.IndexFunc(calls, func(c *strace.Call) bool {
		return c.Name == "read" && bytes.Contains(moved(c), []byte(body))
	})
	qt.Assert(t, qt.IsTrue(end >= 0), qt.Commentf("nobody reads %s", body))
	last := calls[end]
	begin := end
	for i := end; i >= 0; i-- {
		c := calls[i]
		if c.TID == last.TID && fdOf(c) == fdOf(last) {
			begin = i
			if c.Name == "read" && asks(c) == 6 {
				break
			}
		}
	}
	for _, c := range calls[begin:end] {
		if c.TID != last.TID || fdOf(c) != fdOf(last) {
			continue
		}
		if c.Name == "read" { // others, like getpeername, were cut from the recording
			shape = append(shape, fmt.Sprintf("read %d = %d", asks(c), c.Return))
			header = append(header, moved(c)...)
		}
	}
	return shape, header, int(last.Return)
}

func TestHeaderIsReadAsRecorded(t *testing.T) {
	d := start(t, testenv.Options{})
	want, header, length := onConnection(t, recorded(t), "VM.start_on")
	qt.Assert(t, qt.StringContains(string(header), "traceparent: "))
	qt.Assert(t, qt.IsTrue(len(want) > 40))
	body := "<?xml version='1.0'?><methodCall><methodName>VM.get_all</methodName><params></params></methodCall>"
	body += strings.Repeat(" ", length-len(body))
	calls := watch(t, d, []string{"xapi"}, func() {
		_, err := client.Unix(d.XapiSocket(), client.Options{}).Raw(timeout(t, 10*time.Second), header, []byte(body))
		qt.Check(t, qt.IsNil(err))
	})
	got, _, n := onConnection(t, calls, "VM.get_all")
	qt.Assert(t, qt.Equals(n, length))
	qt.Assert(t, qt.DeepEquals(got, want))
}

// clones gives each new thread or process its maker.
func clones(calls []*strace.Call) map[uint32]uint32 {
	out := map[uint32]uint32{}
	for _, c := range calls {
		switch c.Name {
		case "clone", "clone3", "vfork", "fork":
			if c.Return > 0 {
				out[uint32(c.Return)] = c.TID
			}
		}
	}
	return out
}

// who is the thread that makes a call of that name with that text.
func who(t *testing.T, calls []*strace.Call, name, text string) uint32 {
	t.Helper()
	for _, c := range calls {
		if c.Name == name && bytes.Contains(moved(c), []byte(text)) {
			return c.TID
		}
	}
	t.Fatalf("nobody makes %s of %q", name, text)
	return 0
}

func TestThreadsAndProcesses(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	calls := watch(t, d, []string{"xapi", "xenopsd-xc", "message-switch"}, func() {
		call(t, ctx, c, true, "VM.start", session, d.VMs()[0].Ref, false, false)
	})
	l, err := d.Truth()
	qt.Assert(t, qt.IsNil(err))
	maker := clones(calls)

	var accepting uint32
	for _, c := range calls {
		if c.Name == "accept4" && c.Return > 0 {
			accepting = c.TID
		}
	}
	for _, e := range l.Find(truth.API, "Async.VM.start") {
		qt.Check(t, qt.Equals(maker[e.TID], accepting), qt.Commentf("connection's thread"))
	}
	api := l.Find(truth.API, "Async.VM.start")[0]
	task := l.Find(truth.Task, "Async.VM.start")[0]
	qt.Check(t, qt.Equals(maker[task.TID], api.TID), qt.Commentf("task's thread"))

	listener := who(t, calls, "write", `"queues":["org.xen.xapi.xenops.classic"]`)
	for _, name := range []string{"VM.start", "VM.unpause", "VM.import_metadata"} {
		for _, e := range l.Find(truth.RPC, name) {
			qt.Check(t, qt.Equals(maker[e.TID], listener), qt.Commentf("thread of %s", name))
		}
	}
	for _, name := range []string{"xenguest", "LVMSR vdi_attach", "LVMSR vdi_activate"} {
		p := l.Find(truth.Process, name)
		qt.Assert(t, qt.HasLen(p, 1))
		parent, ok := l.ByID(p[0].Parent)
		qt.Assert(t, qt.IsTrue(ok))
		qt.Check(t, qt.Equals(maker[p[0].TGID], parent.TID), qt.Commentf("maker of %s", name))
		var programs []string
		for _, c := range calls {
			if c.Name == "execve" && c.TID == p[0].TGID && c.Return == 0 && len(c.Args) > 0 {
				b, _, _ := c.Args[0].Bytes()
				programs = append(programs, filepath.Base(string(b)))
			}
		}
		program, _, _ := strings.Cut(name, " ")
		qt.Check(t, qt.DeepEquals(programs, []string{"vfork_helper", program}))
	}

	// Nothing else comes from a thread that works for a caller: the Go runtime's own
	// threads are cloned elsewhere.
	known := map[uint32]bool{}
	working := map[uint32]string{}
	for _, e := range l.Entries {
		known[e.TID], known[e.TGID] = true, true
		if e.Kind == truth.API || e.Kind == truth.Task || e.Kind == truth.RPC {
			working[e.TID] = e.Name
		}
	}
	for child, parent := range maker {
		if name, ok := working[parent]; ok {
			qt.Check(t, qt.IsTrue(known[child]), qt.Commentf("thread of %s makes %d", name, child))
		}
	}

	// The switch's own calls.
	for _, c := range calls {
		if c.Name == "read" && bytes.HasPrefix(moved(c), []byte("GET /persistent/")) {
			qt.Check(t, qt.Equals(asks(c), 4096))
		}
	}
}

// envelope is what the thread that sends a switch request does on its connection.
func envelope(t *testing.T, calls []*strace.Call, method string) []string {
	t.Helper()
	end := slices.IndexFunc(calls, func(c *strace.Call) bool {
		return c.Name == "write" && bytes.HasPrefix(moved(c), []byte(`{"method":"`+method+`"`))
	})
	qt.Assert(t, qt.IsTrue(end >= 0), qt.Commentf("nobody calls %s", method))
	c := calls[end]
	var out []string
	begin := end
	for ; begin > 0; begin-- {
		b := calls[begin]
		if b.TID == c.TID && fdOf(b) == fdOf(c) && bytes.HasPrefix(moved(b), []byte("GET /persistent/")) {
			break
		}
	}
	for _, b := range calls[begin:] {
		if b.TID != c.TID || fdOf(b) != fdOf(c) {
			continue
		}
		word, _, _ := strings.Cut(string(moved(b)), " ")
		switch {
		case b.Name == "read":
			out = append(out, fmt.Sprintf("read %d", asks(b)))
		case strings.HasPrefix(word, "{"):
			out = append(out, b.Name+" body")
		default:
			out = append(out, b.Name+" "+word)
		}
		if len(out) == 7 {
			break
		}
	}
	return out
}

func TestEnvelopeIsAsRecorded(t *testing.T) {
	d := start(t, testenv.Options{})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	calls := watch(t, d, []string{"xapi"}, func() {
		call(t, ctx, c, false, "VM.start", session, d.VMs()[0].Ref, false, false)
	})
	want := envelope(t, recorded(t), "VM.start")
	qt.Assert(t, qt.HasLen(want, 7))
	qt.Assert(t, qt.DeepEquals(envelope(t, calls, "VM.start"), want))
	qt.Assert(t, qt.DeepEquals(envelope(t, calls, "VM.import_metadata"), want))
}

func TestLoad(t *testing.T) {
	d := start(t, testenv.Options{})
	for _, keep := range []bool{true, false} {
		c := client.Unix(d.XapiSocket(), client.Options{KeepAlive: keep})
		r, err := c.Load(context.Background(), client.LoadOptions{Connections: 4, Count: 4000})
		qt.Assert(t, qt.IsNil(err))
		t.Logf("keep-alive %v: %v", keep, r)
		qt.Check(t, qt.Equals(r.Calls, 4000))
		qt.Check(t, qt.Equals(r.Failures, 0))
	}
	l, err := d.Truth()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(l.Find(truth.API, "VM.get_by_name_label"), 8000))
}

// spoken are the forms of all that xapi and xenopsd write on connections of the
// switch and read from it.
func spoken(calls []*strace.Call) map[string]string {
	out := map[string]string{}
	for _, c := range calls {
		b := string(moved(c))
		switch {
		case c.Name == "write" && !strings.HasPrefix(b, `{"last_create_time"`) && !strings.HasPrefix(b, `{"generation_id"`): // which are files
			for _, begin := range []string{"GET /", "POST /", "user-agent: cohttp", `{"`} {
				if strings.HasPrefix(b, begin) {
					out[form(b)] = b
				}
			}
		case c.Name == "read" && asks(c) == 65536 && strings.HasPrefix(b, "HTTP/1.1 200 OK\r\ncontent-length: "):
			for _, m := range messages(b) {
				out[form(m)] = m
			}
		}
	}
	return out
}

// messages splits the switch's answer to a transfer: how many messages come
// together is a matter of luck. Other answers stay whole.
func messages(answer string) []string {
	_, list, ok := strings.Cut(answer, `{"messages":[[["`)
	if !ok {
		return []string{answer}
	}
	list, _, _ = strings.Cut(list, `}]],"next":"`)
	return strings.Split(list, `}],[["`) // in a payload the quotes are escaped
}

// changes are answers whose lists differ from run to run, and errors that need not
// happen.
var changes = regexp.MustCompile(`result\\*":\[\[(\[\d+,\[\]\])?\],\[\[|result\\*":\[\[\],\[|Does_not_exist`)

func TestSwitchIsSpokenAsRecorded(t *testing.T) {
	d := start(t, testenv.Options{Disks: -1, NICs: -1, Knobs: testenv.Knobs{Native: config.NativeOn, LogTrace: true}})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Traceparent: traceparent})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	hosts, err := c.Call(ctx, "host.get_all", session)
	qt.Assert(t, qt.IsNil(err))
	calls := watch(t, d, []string{"xapi", "xenopsd-xc"}, func() {
		call(t, ctx, c, false, "VM.start_on", session, d.VMs()[0].Ref, hosts.([]any)[0], false, false)
		call(t, ctx, c, true, "VM.hard_shutdown", session, d.VMs()[0].Ref)
	})
	known := spoken(recorded(t))
	qt.Assert(t, qt.IsTrue(len(known) > 40))
	got := spoken(calls)
	qt.Check(t, qt.IsTrue(len(got) > 40))
	for f, raw := range got {
		if changes.MatchString(raw) {
			continue
		}
		if _, ok := known[f]; !ok {
			t.Errorf("nobody says this in the recording: %.700q\n  %.500q", raw, f)
		}
	}
}
