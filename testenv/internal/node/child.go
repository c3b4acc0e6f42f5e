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

// Child is a program to be run through vfork_helper.
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
// and in the same process the program. It waits for its end on this thread and
// returns what it printed.
func (t *Thread) Run(c Child) ([]byte, error) {
	var in, out, status [2]int
	for _, p := range [][]int{in[:], out[:], status[:]} {
		if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/null: %w", err)
	}
	// The helper gets its own null streams and moves the program's into place.
	argv := append([]string{"/usr/libexec/xapi/vfork_helper", "-e", "3", "-I", "4", "-O", "5", "--", c.Path}, c.Args...)
	s := t.Begin(truth.Process, name(c))
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   append([]string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin"}, append(t.traceEnv(c.Span), c.Env...)...),
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(status[1]), uintptr(in[0]), uintptr(out[1])},
	})
	for _, fd := range []int{null, status[1], in[0], out[1]} {
		unix.Close(fd)
	}
	defer unix.Close(status[0])
	defer unix.Close(out[0])
	if err != nil {
		unix.Close(in[1])
		s.End()
		return nil, fmt.Errorf("%s: %w", argv[0], err)
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
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(pid, &ws, 0, nil)
		if err != unix.EINTR {
			break
		}
	}
	if err == nil && (!ws.Exited() || ws.ExitStatus() != 0) {
		err = fmt.Errorf("%s: exit status %d", filepath.Base(c.Path), ws.ExitStatus())
		s.Err = err.Error()
	}
	s.End()
	return printed.Bytes(), err
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
