//go:build linux

package dom0

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// program of the agent in dom0.
const dtagent = "/bin/dtagent"

// agent is a running one.
type agent struct {
	t       *testing.T
	control string
}

// startAgent starts one and waits until it answers.
func startAgent(t *testing.T, flags ...string) *agent {
	t.Helper()
	dir := t.TempDir()
	a := &agent{t, filepath.Join(dir, "run", "control.sock")}
	in := func(name string) string { return filepath.Join(dir, name) }
	cmd := exec.Command(dtagent, append([]string{"run", "--xapi-socket=", "--state-dir=", "--host-uuid=" + hostUUID,
		"--control", a.control, "--observers-dir", in("observers.d"), "--bugtool-dir", in("bugtool"), "--span-log", in("spans.jsonl")}, flags...)...)
	var said output
	cmd.Stdout, cmd.Stderr = &said, &said
	qt.Assert(t, qt.IsNil(cmd.Start()))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		select {
		case err := <-ended:
			qt.Check(t, qt.IsNil(err), qt.Commentf("%s", &said))
		case <-time.After(hang):
			cmd.Process.Kill()
			t.Errorf("the agent does not end: %s", &said)
		}
		if t.Failed() {
			t.Logf("the agent said: %s", &said)
		}
	})
	for end := time.Now().Add(hang); ; time.Sleep(100 * time.Millisecond) {
		out, err := exec.Command(dtagent, "status", "--control", a.control).CombinedOutput()
		if err == nil {
			return a
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the agent ended: %v: %s", err, &said)
		default:
		}
		qt.Assert(t, qt.IsTrue(time.Now().Before(end)), qt.Commentf("%s\n%s", out, &said))
	}
}

const hostUUID = "d07a9e57-0000-4000-8000-000000000001"

// output keeps what a process says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// ioSample is what `dtagent io --json` prints for each sample, as docs/io.md says.
type ioSample struct {
	Time   time.Time
	VBDs   []ioDisk `json:"vbds"`
	Losses []struct {
		Cause string
		Count uint64
	}
	Trouble string
}

type ioDisk struct {
	Domid   int
	Domain  string
	Devid   int
	Device  string
	Kind    string
	Seen    bool
	Why     string
	Devices []string
	Read    ioKind
	Write   ioKind
}

type ioKind struct {
	Total struct {
		Ops, Bytes, Done, Errors uint64
		Latency                  *struct {
			Mean float64 `json:"mean_us"`
		}
	}
}

// ioStream is a running `dtagent io --json`. What it says is read at once, whether
// somebody wants it or not: the agent drops readers that are slow.
type ioStream struct {
	t    *testing.T
	said output

	mu    sync.Mutex
	last  ioSample
	ended bool
}

func (a *agent) io() *ioStream {
	a.t.Helper()
	s := &ioStream{t: a.t}
	cmd := exec.Command(dtagent, "io", "--json", "--interval", "1s", "--control", a.control)
	cmd.Stderr = &s.said
	out, err := cmd.StdoutPipe()
	qt.Assert(a.t, qt.IsNil(err))
	qt.Assert(a.t, qt.IsNil(cmd.Start()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for in := json.NewDecoder(out); ; {
			var one ioSample
			err := in.Decode(&one)
			s.mu.Lock()
			if err != nil {
				fmt.Fprintf(&s.said, "%v\n", err)
				s.ended = true
				s.mu.Unlock()
				return
			}
			s.last = one
			s.mu.Unlock()
		}
	}()
	a.t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		<-done
		cmd.Wait()
	})
	return s
}

// next returns a sample taken from now on that is as wanted.
func (s *ioStream) next(what string, ok func(*ioSample) bool) *ioSample {
	s.t.Helper()
	for now := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		s.mu.Lock()
		last, ended := s.last, s.ended
		s.mu.Unlock()
		if last.Time.After(now) && ok(&last) {
			return &last
		}
		if ended || time.Since(now) > hang {
			s.t.Fatalf("dtagent io: no sample with %s; the last is %+v; it said: %s", what, last, &s.said)
		}
	}
}

// disk returns a guest's disk in a sample, nil if it is not there.
func (s *ioSample) disk(domid, devid int) *ioDisk {
	for i := range s.VBDs {
		if d := &s.VBDs[i]; d.Domid == domid && d.Devid == devid {
			return d
		}
	}
	return nil
}
