package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Options, Knobs and VM are those of package config.
type (
	Options = config.Options
	Knobs   = config.Knobs
	VM      = config.VM
)

// Dom0 is a running simulated dom0. Its methods may be called from any goroutine.
type Dom0 struct {
	dir    string
	ownDir bool
	cmd    *exec.Cmd
	ready  config.Ready

	names  sync.Mutex // of ready.Processes
	mu     sync.Mutex // one command at a time on the control pipe
	in     io.WriteCloser
	out    *bufio.Reader
	closed bool
	err    error
}

// ErrPrivilege says that this process may not make a dom0.
var ErrPrivilege = errors.New("needs root (CAP_SYS_ADMIN) for a private mount namespace")

// Start starts a dom0 and returns when all its processes answer. ctx ends it
// early, also later. The caller closes it.
func Start(ctx context.Context, o Options) (*Dom0, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("testenv: %w", ErrPrivilege)
	}
	o = o.WithDefaults()
	d := &Dom0{dir: o.Dir}
	if d.dir == "" {
		dir, err := os.MkdirTemp("", "dom0-")
		if err != nil {
			return nil, fmt.Errorf("testenv: %w", err)
		}
		d.dir, d.ownDir = dir, true
	}
	if err := d.start(ctx, o); err != nil {
		if d.ownDir {
			os.RemoveAll(d.dir)
		}
		return nil, fmt.Errorf("testenv: %w", err)
	}
	return d, nil
}

// Build builds the binary that all processes of a dom0 are, into dir, and
// returns its path. It needs the go command and a C compiler.
func Build(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "dom0")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/xenserver/dtagent/testenv/cmd/dom0")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build dom0: %w: %s", err, out)
	}
	return bin, nil
}

func (d *Dom0) start(ctx context.Context, o Options) error {
	if o.Binary == "" {
		bin, err := Build(ctx, d.dir)
		if err != nil {
			return err
		}
		o.Binary = bin
	}
	o.Dir = d.dir
	arg, err := json.Marshal(o)
	if err != nil {
		return err
	}
	d.cmd = exec.CommandContext(ctx, o.Binary, "init", string(arg))
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 5 * time.Second
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	logFile, err := os.Create(filepath.Join(d.dir, "init.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	d.cmd.Stderr = logFile
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	d.out = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			return ErrPrivilege
		}
		return err
	}
	if err := d.answer(&d.ready); err != nil {
		_ = d.in.Close()
		_ = d.cmd.Wait()
		if msg, e := os.ReadFile(logFile.Name()); e == nil && len(msg) > 0 {
			return fmt.Errorf("start: %w: %s", err, msg)
		}
		return fmt.Errorf("start: %w", err)
	}
	o.Log.Info("dom0 is up", "dir", d.dir, "processes", d.ready.Processes)
	return nil
}

// answer reads one answer of the launcher into v.
func (d *Dom0) answer(v any) error {
	line, err := d.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	var a config.Answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("launcher says %q: %w", line, err)
	}
	if a.Err != "" {
		return errors.New(a.Err)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(a.Value, v)
}

// command gives a command to the launcher, and the answer's value to v.
func (d *Dom0) command(c config.Command, v any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := d.in.Write(append(line, '\n')); err != nil {
		return err
	}
	return d.answer(v)
}

// Set turns the knobs of all processes and returns when all have taken them.
func (d *Dom0) Set(k Knobs) error {
	if err := d.command(config.Command{Set: &k}, nil); err != nil {
		return fmt.Errorf("testenv: set: %w", err)
	}
	return nil
}

// Truth returns what has happened so far. What is still going on is not in it.
func (d *Dom0) Truth() (*truth.Log, error) {
	if err := d.flush(); err != nil {
		return nil, err
	}
	return truth.Read(d.dir)
}

func (d *Dom0) flush() error {
	if err := d.command(config.Command{Flush: true}, nil); err != nil {
		return fmt.Errorf("testenv: truth: %w", err)
	}
	return nil
}

// Dir is the directory with *.truth, devlog and the processes' own logs.
func (d *Dom0) Dir() string { return d.dir }

// Processes gives the tgids by name: xapi, message-switch, xenopsd-xc, stunnel,
// rsyslogd, and init for the launcher. Those of now: Restart changes them.
func (d *Dom0) Processes() map[string]int {
	d.names.Lock()
	defer d.names.Unlock()
	return maps.Clone(d.ready.Processes)
}

// PID gives the tgid of one of Processes, 0 if there is none.
func (d *Dom0) PID(name string) int { return d.Processes()[name] }

// ProcDir is a directory like /proc that shows the processes of this dom0 only.
// One that Restart starts is in it before it executes its program.
func (d *Dom0) ProcDir() string { return config.ProcDir(d.dir) }

// VMs gives the guests, all halted at the start.
func (d *Dom0) VMs() []VM { return d.ready.VMs }

// HostUUID is the host's uuid, also to be found in /etc/xensource-inventory inside.
func (d *Dom0) HostUUID() string { return d.ready.Host }

// HostName is the host's name label.
func (d *Dom0) HostName() string { return d.ready.HostName }

// HostRef is the host's reference.
func (d *Dom0) HostRef() string { return d.ready.HostRef }

// PoolUUID is the pool's uuid.
func (d *Dom0) PoolUUID() string { return d.ready.Pool }

// PoolRef is the pool's reference.
func (d *Dom0) PoolRef() string { return d.ready.PoolRef }

// Path gives a path inside the dom0 as seen from outside, through /proc.
// Connecting to a socket by it works.
func (d *Dom0) Path(p string) string {
	return filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "root", p)
}

// XapiSocket is the path of xapi's unix socket, seen from outside.
func (d *Dom0) XapiSocket() string { return d.Path("/var/lib/xcp/xapi") }

// Addr is the address of xapi's IPv4 listener.
func (d *Dom0) Addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), d.ready.Port)
}

// Addr6 is the address of xapi's IPv6 listener.
func (d *Dom0) Addr6() netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Loopback(), d.ready.Port) }

// TLSAddr is the address of stunnel, which has a self-signed certificate.
func (d *Dom0) TLSAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), d.ready.TLSPort)
}

// Command returns a command that runs inside the dom0's mount and network namespaces.
func (d *Dom0) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	all := append([]string{"exec", strconv.Itoa(d.cmd.Process.Pid), name}, args...)
	return exec.CommandContext(ctx, d.ready.Binary, all...)
}

// Close ends all processes and removes Dir if it was made by Start. It may be
// called twice.
func (d *Dom0) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return d.err
	}
	d.closed = true
	_ = d.in.Close() // the launcher ends on EOF
	err := d.cmd.Wait()
	if d.ownDir {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	if err != nil {
		d.err = fmt.Errorf("testenv: close: %w", err)
	}
	return d.err
}
