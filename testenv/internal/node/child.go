//go:build linux

package node

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Child is a program to be run through vfork_helper or by forkexecd.
type Child struct {
	Path      string
	Args      []string // without the program
	Name      string   // for the truth; "": that of Path
	Operation string   // for the truth
	Component string
	Env       []string
	Input     []byte  // of its standard input
	Span      Context // passed on in its environment; none: a trace of its own, as most children get
}

// Run runs c as Forkhelpers does: vfork on the calling thread, vfork_helper,
// and in the same process the program; or forkexecd starts that. It waits for its
// end on this thread and returns what it printed.
func (t *Thread) Run(c Child) ([]byte, error) {
	var in, out, status [2]int
	for _, p := range [][]int{in[:], out[:], status[:]} {
		if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
	}
	s := t.Begin(truth.Process, name(c))
	pid, wait, err := t.start(s, c, in[0], out[1], status[1])
	for _, fd := range []int{status[1], in[0], out[1]} {
		unix.Close(fd)
	}
	defer unix.Close(status[0])
	defer unix.Close(out[0])
	if err != nil {
		unix.Close(in[1])
		s.End()
		return nil, err
	}
	s.TGID, s.TID = uint32(pid), uint32(pid)
	s.Component = c.Component
	s.Keys = append(s.Keys, "pid:"+strconv.Itoa(pid))
	_ = sys.Write(in[1], c.Input) // a child that does not read ends early; its status tells
	unix.Close(in[1])
	var printed bytes.Buffer
	buf := make([]byte, 4096)
	for {
		n, err := sys.Read(out[0], buf)
		if err != nil {
			break
		}
		printed.Write(buf[:n])
	}
	ws, err := wait()
	if err == nil && (!ws.Exited() || ws.ExitStatus() != 0) {
		err = fmt.Errorf("%s: exit status %d", filepath.Base(c.Path), ws.ExitStatus())
		s.Err = err.Error()
	}
	s.End()
	return printed.Bytes(), err
}

// start starts c with in and out as its streams, and returns its process id and
// how to wait for its end. vfork_helper gets status, whose closing tells that exec
// worked.
func (t *Thread) start(s *Span, c Child, in, out, status int) (pid int, wait func() (unix.WaitStatus, error), err error) {
	env := append([]string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin"}, append(t.traceEnv(c.Span), c.Env...)...)
	if t.P.Setup.Options.Forkexecd {
		e, err := execute(s, append([]string{c.Path}, c.Args...), env, []named{{newUUID(), 0, in}, {newUUID(), 1, out}})
		if err != nil {
			return 0, nil, err
		}
		return e.pid, e.wait, nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("/dev/null: %w", err)
	}
	defer unix.Close(null)
	// The helper gets its own null streams and moves the program's into place.
	argv := append([]string{"/usr/libexec/xapi/vfork_helper", "-e", "3", "-I", "4", "-O", "5", "--", c.Path}, c.Args...)
	if pid, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(status), uintptr(in), uintptr(out)},
	}); err != nil {
		return 0, nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	return pid, func() (ws unix.WaitStatus, err error) {
		for {
			if _, err = unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				return ws, err
			}
		}
	}, nil
}

func name(c Child) string {
	name := c.Name
	if name == "" {
		name = filepath.Base(c.Path)
	}
	if c.Operation != "" {
		name += " " + c.Operation
	}
	return name
}

// DelayEnv tells a child how long to sleep.
func DelayEnv(d time.Duration) string {
	return "DOM0_DELAY_US=" + strconv.FormatInt(d.Microseconds(), 10)
}
