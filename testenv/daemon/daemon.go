// Package daemon runs the real dtagent binary for tests and demonstrations.
package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// Build builds the agent as `make` does and returns the path of the binary in
// dir.
func Build(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "dtagent")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/xenserver/dtagent/cmd/dtagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build dtagent: %w: %s", err, out)
	}
	return bin, nil
}

// Options of an agent.
type Options struct {
	Binary     string    // as Build made it
	Dir        string    // holds its Observers, its socket and, below spans, its bugtool files
	XAPISocket string    // of the XAPI whose Observers it follows; "": of none
	Only       []int     // the processes that it may find; none: all that Proc shows
	Proc       string    // directory like /proc, such as a simulated dom0's ProcDir; "": /proc
	Args       []string  // further arguments of `dtagent run`
	Log        io.Writer // also gets what the agent logs; nil: nothing does

	In func(start func() error) error // calls start where the agent is to live, such as a network namespace; nil: here
}

// Daemon is a running agent. Its methods may be called from any goroutine.
type Daemon struct {
	o    Options
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
	log  logBuffer
}

// Start starts an agent and returns when it answers on its socket.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{o: o, done: make(chan struct{})}
	if err := os.MkdirAll(d.ObserversDir(), 0o755); err != nil {
		return nil, err
	}
	args := []string{"run", "--config", "", "--observers-dir", d.ObserversDir(), "--control", d.Control(), "--bugtool-dir", d.SpansDir(),
		"--state-dir", d.StateDir(), "--span-log", d.SpanLog(), "--xapi-socket", o.XAPISocket}
	if len(o.Only) > 0 {
		proc, err := restrict(filepath.Join(o.Dir, "proc"), o.Only)
		if err != nil {
			return nil, err
		}
		args = append(args, "--proc", proc)
	} else if o.Proc != "" {
		args = append(args, "--proc", o.Proc)
	}
	args = append(args, o.Args...)
	d.cmd = exec.Command(o.Binary, args...)
	d.cmd.Stderr = &d.log
	if o.Log != nil {
		d.cmd.Stderr = io.MultiWriter(&d.log, o.Log)
	}
	// The agent ends with its starter, whatever becomes of that.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	in := o.In
	if in == nil {
		in = func(start func() error) error { return start() }
	}
	if err := in(d.cmd.Start); err != nil {
		return nil, fmt.Errorf("start dtagent: %w", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	if err := d.Wait(ctx, time.Minute, "answers on its socket", func(*control.Status) bool { return true }); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// restrict makes a directory that shows some of /proc's processes.
func restrict(dir string, pids []int) (string, error) {
	if err := os.RemoveAll(dir); err != nil { // of an agent before this one
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	links := []string{"self", "net", "stat", "uptime"}
	for _, pid := range pids {
		links = append(links, strconv.Itoa(pid))
	}
	for _, l := range links {
		if err := os.Symlink(filepath.Join("/proc", l), filepath.Join(dir, l)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// ObserversDir is the directory of the agent's Observer files.
func (d *Daemon) ObserversDir() string { return filepath.Join(d.o.Dir, "observers.d") }

// Control is the path of the agent's socket.
func (d *Daemon) Control() string { return filepath.Join(d.o.Dir, "run", "control.sock") }

// SpansDir is the directory of the agent's bugtool files.
func (d *Daemon) SpansDir() string { return filepath.Join(d.o.Dir, "spans") }

// StateDir is the directory of what outlives the agent.
func (d *Daemon) StateDir() string { return filepath.Join(d.o.Dir, "state") }

// SpanLog is the file of the log records that the agent makes from spans.
func (d *Daemon) SpanLog() string { return filepath.Join(d.o.Dir, "log", "spans.jsonl") }

// PID is the agent's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log is all that the agent has logged.
func (d *Daemon) Log() string { return d.log.String() }

// Status asks the agent about itself.
func (d *Daemon) Status(ctx context.Context) (*control.Status, error) {
	return control.NewClient(d.Control()).Status(ctx)
}

// Wait waits until the agent's status suits ok. what completes "the agent ..."
// for the error.
func (d *Daemon) Wait(ctx context.Context, most time.Duration, what string, ok func(*control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var last *control.Status
	for {
		s, err := d.Status(ctx)
		if err == nil {
			if ok(s) {
				return nil
			}
			last = s
		}
		select {
		case <-d.done:
			return fmt.Errorf("dtagent ended before it %s: %w\n%s", what, errors.Join(d.err), d.log.String())
		case <-ctx.Done():
			if last != nil {
				last.Probes = nil // long, and the same everywhere
			}
			shown, _ := json.MarshalIndent(last, "", " ") // it came as JSON
			return fmt.Errorf("dtagent: %w while waiting until it %s (last error: %v)\n%s\n%s", ctx.Err(), what, err, shown, d.log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stillness is how long no span is made once all that can be made are: longer
// than the engine holds a tree back.
const stillness = 2500 * time.Millisecond

// backlog is the longest time for which an event may wait for the engine while
// no span is made.
const backlog = time.Second

// Settled waits until the spans of all that has ended have gone where they
// should. What is still open, such as a long poll, it does not wait for. Threads
// tell how they spend their time also when they do nothing, so there are always
// events; what counts is that none waits for long.
func (d *Daemon) Settled(ctx context.Context, most time.Duration) error {
	var last, mark uint64
	since := time.Now() // nothing was made
	clear := since      // all that was queued then has been taken
	return d.Wait(ctx, most, "has sent its spans", func(s *control.Status) bool {
		now := time.Now()
		var queued uint64
		for _, o := range s.Observers {
			for _, e := range o.Endpoints {
				queued += e.Queued
			}
		}
		if n := s.Engine.Spans; n != last || queued > 0 {
			last, since = n, now
		}
		if s.Sorter.Events >= mark {
			mark, clear = s.Sorter.Events+uint64(s.Handover.Queued), now
		}
		return now.Sub(since) > stillness && now.Sub(clear) < backlog
	})
}

// Run runs another verb of the same binary and returns its output. For observer
// verbs the directory is added.
func (d *Daemon) Run(ctx context.Context, args ...string) (string, error) {
	switch args[0] {
	case "observer":
		args = append(args, "--observers-dir", d.ObserversDir())
	case "status", "trace", "io", "record":
		args = append(args, "--control", d.Control())
	}
	cmd := exec.CommandContext(ctx, d.o.Binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("dtagent %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

// Stop asks the agent to end and waits until it has. It may be called twice.
func (d *Daemon) Stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("dtagent did not end within 20 s of SIGTERM\n%s", d.log.String())
	}
	if d.err != nil {
		return fmt.Errorf("dtagent: %w\n%s", d.err, d.log.String())
	}
	return nil
}

// Kill ends the agent with SIGKILL, as a crash does, and waits until it is gone.
func (d *Daemon) Kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	<-d.done
	return nil
}

// logBuffer keeps what is written to it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
