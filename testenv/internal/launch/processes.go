//go:build linux

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
)

// processes are those of one dom0, in the order in which they are started.
type processes struct {
	setup config.Setup
	all   []*process
	now   map[string]int // process ids by name
}

// start starts one and waits until it serves; its answer goes to got.
func (a *processes) start(p *process, got any) error {
	err := p.start(a.setup)
	if err == nil {
		a.now[p.name] = p.cmd.Process.Pid
		err = p.answer(got)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// stop ends all, the last one first.
func (a *processes) stop() error {
	var errs []error
	for _, p := range slices.Backward(a.all) {
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

// obey does one command: a restart itself, the others by telling all processes. The
// value is the answer's.
func (a *processes) obey(line []byte) (any, error) {
	var c config.Command
	if err := json.Unmarshal(line, &c); err != nil {
		return nil, err
	}
	if c.Restart != nil {
		return a.now, a.restart(*c.Restart)
	}
	if c.Set != nil {
		a.setup.Options.Knobs = *c.Set // for those that start later
	}
	var errs []error
	for _, p := range a.all {
		if err := p.tell(line); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return nil, errors.Join(errs...)
}

// tell gives a process a command and waits until it has obeyed.
func (p *process) tell(line []byte) error {
	if _, err := p.in.Write(line); err != nil {
		return err
	}
	return p.answer(nil)
}

// members are the processes of a program, in the order in which they are started.
var members = map[config.Program][]string{
	config.Xapi:      {"xapi"},
	config.Xenopsd:   {"xenopsd-xc"},
	config.Syslog:    {"rsyslogd"},
	config.Toolstack: {"message-switch", "squeezed", "xcp-networkd", "xcp-rrdd", "xenopsd-xc", "xapi"},
}

// sockets are what processes listen on.
var sockets = map[string]string{"xapi": "/var/lib/xcp/xapi", "message-switch": "/var/run/message-switch/sock", "rsyslogd": "/dev/log"}

// restart ends processes, the last one first, and starts them again.
func (a *processes) restart(r config.Restart) error {
	names := members[r.Program]
	if names == nil {
		return fmt.Errorf("%q cannot be restarted", r.Program)
	}
	var chosen []*process
	for _, p := range a.all {
		if slices.Contains(names, p.name) {
			chosen = append(chosen, p)
		}
	}
	for _, p := range slices.Backward(chosen) {
		if err := p.kill(a.setup.Root, r.Outage.Signal); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if r.Outage.Gone >= 0 {
		for _, p := range chosen {
			if err := os.Remove(sockets[p.name]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		time.Sleep(r.Outage.Gone)
	}
	a.setup.Refused = max(0, r.Outage.Refused)
	defer func() { a.setup.Refused = 0 }()
	for _, p := range chosen {
		if err := a.start(p, nil); err != nil {
			return err
		}
	}
	return nil
}

// kill ends the process by a signal, after it has written what it knows of the
// truth.
func (p *process) kill(root string, s syscall.Signal) error {
	flush, err := json.Marshal(config.Command{Flush: true})
	if err != nil {
		return err
	}
	if err := p.tell(append(flush, '\n')); err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(s); err != nil {
		return err
	}
	select {
	case <-p.ends: // by a signal: an error, and what was wanted
		p.ends <- nil
		hide(root, p.cmd.Process.Pid)
	case <-time.After(5 * time.Second):
		return fmt.Errorf("does not end by %v", s)
	}
	return p.in.Close()
}
