package recordings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/replay"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/recording"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/daemon"
)

var record = flag.Bool("record", false, "put what TestRecordAndReplay records in the place of the recordings")

// callerTrace is the trace of the caller that has one.
const (
	callerTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	callerSpan  = "00f067aa0ba902b7"
)

// scenario is what is done while it is recorded.
type scenario struct {
	name string
	do   func(t *testing.T, s *session)
}

var scenarios = []scenario{
	{"start-traceparent", func(t *testing.T, s *session) {
		c := s.plain.With(client.Options{Shape: client.Node, Traceparent: "00-" + callerTrace + "-" + callerSpan + "-01", Header: secretHeader})
		defer c.Close()
		task, err := c.Call(t.Context(), "Async.VM.start", s.ref, s.vm, false, false)
		qt.Assert(t, qt.IsNil(err))
		s.wait(t, task)
	}},
	{"start", func(t *testing.T, s *session) {
		task, err := s.plain.Call(t.Context(), "Async.VM.start", s.ref, s.vm, false, false)
		qt.Assert(t, qt.IsNil(err))
		s.wait(t, task)
	}},
	{"failure", func(t *testing.T, s *session) {
		c := s.plain.With(client.Options{Shape: client.Python, Traceparent: "00-" + callerTrace + "-" + callerSpan + "-00", Header: secretHeader})
		defer c.Close()
		_, err := c.Call(t.Context(), "VM.shutdown", s.ref, s.vm) // it is halted
		var f *client.Failure
		qt.Assert(t, qt.IsTrue(errors.As(err, &f)), qt.Commentf("%v", err))
	}},
}

// secretHeader is what clients send besides.
var secretHeader = []string{"Cookie: session_id=OpaqueRef:" + canary + "cookie; pool_secret=" + canary + "pool", "Authorization: Basic " + canary + "basic"}

// session is a caller that is logged in.
type session struct {
	plain *client.Client // keeps its connection
	ref   string
	vm    string
}

// wait waits for the end of a task.
func (s *session) wait(t *testing.T, task any) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		state, err := s.plain.Call(t.Context(), "task.get_status", s.ref, task)
		qt.Assert(t, qt.IsNil(err))
		if state != "pending" {
			qt.Assert(t, qt.Equals(state, any("success")))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the task does not end")
}

// recorder is a running dtagent record.
type recorder struct {
	cmd  *exec.Cmd
	file string
	out  bytes.Buffer
	errs bytes.Buffer
}

func startRecorder(t *testing.T, binary, socket, file string, args ...string) *recorder {
	t.Helper()
	r := &recorder{file: file}
	r.cmd = exec.Command(binary, append([]string{"record", file, "--control", socket, "--json"}, args...)...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errs
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	qt.Assert(t, qt.IsNil(r.cmd.Start()))
	// The first block is there: it hears of all that happens from now on.
	soon(t, "the recording has begun", func() bool {
		f, err := os.Open(file)
		if err != nil {
			return false
		}
		defer f.Close()
		in, err := recording.NewReader(f)
		if err != nil {
			return false
		}
		defer in.Close()
		var b recording.Block
		return in.ReadBlock(&b) == nil
	})
	return r
}

// soon waits for a condition.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it takes more than a minute until %s", what)
		}
	}
}

// play returns the spans of a recording, and what it says.
func play(t *testing.T, file string) (spans []zipkin.Span, sum replay.Summary, h *recording.Header) {
	t.Helper()
	f, err := os.Open(file)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	in, err := recording.NewReader(f)
	qt.Assert(t, qt.IsNil(err))
	defer in.Close()
	sum, err = replay.Run(t.Context(), in, replay.Options{Emit: func(s *correlate.Span) { spans = append(spans, zipkin.FromSpan(s)) }})
	qt.Assert(t, qt.IsNil(err))
	return spans, sum, in.Header()
}

// TestRecordAndReplay records what a running agent sees of calls, and compares the
// trees that come of it with those that the agent made of them at the time. A
// recorder that is killed leaves what it has written.
func TestRecordAndReplay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for eBPF and a mount namespace")
	}
	bin := t.TempDir()
	dtagent, err := daemon.Build(t.Context(), bin)
	qt.Assert(t, qt.IsNil(err))
	dom0Binary, err := testenv.Build(t.Context(), bin)
	qt.Assert(t, qt.IsNil(err))
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) { recordAndReplay(t, sc, dtagent, dom0Binary) })
	}
}

func recordAndReplay(t *testing.T, sc scenario, binary, dom0Binary string) {
	ctx := context.Background()
	dom0, err := testenv.Start(ctx, testenv.Options{Binary: dom0Binary, Knobs: testenv.Knobs{
		AtomTime: map[string]time.Duration{"*": 2 * time.Millisecond, "VM_build": 20 * time.Millisecond},
		Delay:    map[config.Layer]time.Duration{config.LayerSM: 10 * time.Millisecond},
	}})
	qt.Assert(t, qt.IsNil(err))
	defer func() { qt.Check(t, qt.IsNil(dom0.Close())) }()
	dir := t.TempDir()
	agent, err := daemon.Start(ctx, daemon.Options{Binary: binary, Dir: dir, Proc: dom0.ProcDir(), Args: []string{"--host-uuid", dom0.HostUUID(), "--host-name", "simulated"}})
	qt.Assert(t, qt.IsNil(err))
	defer func() { qt.Check(t, qt.IsNil(agent.Stop())) }()
	_, err = agent.Run(ctx, "observer", "create", "name-label=live", "enabled=true")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(agent.Wait(ctx, 60*time.Second, "watches xapi and xenopsd", func(s *control.Status) bool {
		found := map[string]bool{}
		for _, x := range s.Targets {
			found[x.Component] = true
		}
		return len(s.Probes) > 0 && found["xapi"] && found["xenopsd"]
	})))

	// What the caller's connection is was seen before the recording begins.
	s := &session{plain: client.Unix(dom0.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true, Header: secretHeader}), vm: dom0.VMs()[0].Ref}
	defer s.plain.Close()
	v, err := s.plain.Call(ctx, "session.login_with_password", "root", canary+"password", "1.0", "partner")
	qt.Assert(t, qt.IsNil(err))
	s.ref = v.(string)

	note := "a simulated dom0"
	r := startRecorder(t, binary, agent.Control(), filepath.Join(dir, "recording.dtrec"), "--note", note)
	killed := startRecorder(t, binary, agent.Control(), filepath.Join(dir, "killed.dtrec"))
	again, err := s.plain.With(client.Options{Shape: client.Node, Header: secretHeader}).Call(ctx, "session.login_with_password", "root", canary+"password", "1.0", "partner")
	qt.Assert(t, qt.IsNil(err))
	sc.do(t, s)
	qt.Assert(t, qt.IsNil(agent.Settled(ctx, 60*time.Second)))

	qt.Assert(t, qt.IsNil(killed.cmd.Process.Kill()))
	qt.Assert(t, qt.IsNotNil(killed.cmd.Wait()))
	qt.Assert(t, qt.IsNil(r.cmd.Process.Signal(syscall.SIGINT)))
	qt.Assert(t, qt.IsNil(r.cmd.Wait()), qt.Commentf("%s", &r.errs))
	var said struct {
		Events, Lost, Missing uint64
		Bytes                 int64
		Reason                string
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal(r.out.Bytes(), &said)))
	qt.Check(t, qt.Equals(said.Reason, "interrupted"))
	qt.Check(t, qt.Equals(said.Lost, 0))

	var live []zipkin.Span
	qt.Assert(t, qt.IsNil(zipkin.ReadPath(agent.SpansDir(), func(s zipkin.Span) { live = append(live, s) })))
	spans, sum, h := play(t, r.file)
	qt.Check(t, qt.Equals(sum.Events, said.Events))
	qt.Check(t, qt.Equals(sum.Ended, "interrupted"))
	qt.Check(t, qt.Equals(sum.Torn, ""))
	qt.Check(t, qt.Equals(h.Host.UUID, dom0.HostUUID()))
	qt.Check(t, qt.Equals(h.Note, note))
	qt.Check(t, qt.StringContains(strings.Join(h.Components, " "), "xenopsd"))
	info, err := os.Stat(r.file)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Size(), said.Bytes))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o600))
	// The same trees, as far as they began after the recording did. What was lost on
	// the way to the agent's engine is missing in both.
	names := []string{"Async.VM.start", "VM.shutdown"}
	want := shape(root(live, names...))
	qt.Check(t, qt.Not(qt.Equals(want, "")))
	spans = slices.DeleteFunc(spans, func(s zipkin.Span) bool { return s.Incomplete() == "still open" }) // and so in the agent
	qt.Check(t, qt.Equals(shape(root(spans, names...)), want))

	torn, tornSum, _ := play(t, killed.file)
	qt.Check(t, qt.StringContains(tornSum.Torn, "was not ended"))
	qt.Check(t, qt.IsTrue(tornSum.Events > 0 && len(torn) > 0))

	f, err := os.Open(r.file)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	in, err := recording.NewReader(f)
	qt.Assert(t, qt.IsNil(err))
	defer in.Close()
	b := unpacked(t, in)
	for _, secret := range []string{canary, strings.TrimPrefix(s.ref, "OpaqueRef:"), strings.TrimPrefix(again.(string), "OpaqueRef:")} {
		if i := bytes.Index(b, []byte(secret)); i >= 0 {
			t.Errorf("the recording holds a secret: …%q…", b[max(0, i-100):i+50])
		}
	}
	t.Logf("%d events, %d bytes, %d spans", sum.Events, said.Bytes, len(spans))
	if *record && !t.Failed() {
		qt.Assert(t, qt.IsNil(Keep(r.file, sc.name+".dtrec")))
	}
}

// root returns the spans of the traces that have a span of one of the names.
func root(spans []zipkin.Span, names ...string) (out []zipkin.Span) {
	wanted := map[string]bool{}
	for _, s := range spans {
		for _, n := range names {
			wanted[s.TraceID] = wanted[s.TraceID] || s.Name == n
		}
	}
	for _, s := range spans {
		if wanted[s.TraceID] {
			out = append(out, s)
		}
	}
	return out
}
