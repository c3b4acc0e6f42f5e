//go:build linux

package node

import (
	"fmt"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/truth"
)

// Lasting is a child that outlives the work it was started for.
type Lasting struct {
	PID  int
	span *Span
	by   *execution // forkexecd's; nil: by vfork_helper
}

// Spawn starts c as Run does and does not wait for it. std are its streams; the
// argument uuid of c becomes the number that pass has in it.
func (t *Thread) Spawn(c Child, std [3]int, uuid string, pass int) (*Lasting, error) {
	env := append([]string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin"}, append(t.traceEnv(c.Span), c.Env...)...)
	if t.P.Setup.Options.Forkexecd {
		s := t.Begin(truth.Process, name(c))
		e, err := execute(s, append([]string{c.Path}, c.Args...), env, []named{{uuid, -1, pass}, {newUUID(), 0, std[0]}, {newUUID(), 1, std[1]}, {newUUID(), 2, std[2]}})
		t.Parent = s.before
		if err != nil {
			return nil, err
		}
		return s.lasting(c, e.pid, e), nil
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(status[0])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(status[1])
		return nil, fmt.Errorf("/dev/null: %w", err)
	}
	argv := append([]string{"/usr/libexec/xapi/vfork_helper", "-e", "3", "-I", "4", "-O", "5", "-E", "6", "-m", uuid, "7", "--", c.Path}, c.Args...)
	s := t.Begin(truth.Process, name(c))
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(status[1]), uintptr(std[0]), uintptr(std[1]), uintptr(std[2]), uintptr(pass)},
	})
	t.Parent = s.before
	unix.Close(null)
	unix.Close(status[1])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	return s.lasting(c, pid, nil), nil
}

func (s *Span) lasting(c Child, pid int, by *execution) *Lasting {
	s.TGID, s.TID = uint32(pid), uint32(pid)
	s.Component = c.Component
	s.Keys = append(s.Keys, "pid:"+strconv.Itoa(pid))
	return &Lasting{PID: pid, span: s, by: by}
}

// Wait waits on the calling thread until the child has ended, and writes it down.
func (l *Lasting) Wait() {
	var ws unix.WaitStatus
	if l.by != nil {
		_, _ = l.by.wait() // ended, or forkexecd is gone
	}
	for l.by == nil {
		if _, err := unix.Wait4(l.PID, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	l.span.Entry.End = truth.Now()
	l.span.t.P.Truth.Add(l.span.Entry)
}
