//go:build linux

package launch

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
)

// process is one of the dom0's long-lived processes.
type process struct {
	name string
	cmd  *exec.Cmd
	in   *os.File
	out  *bufio.Reader
	ends chan error
}

// patience is how long a process may take to come up or to obey.
const patience = 20 * time.Second

// Run is the launcher's life: it reads commands and writes answers, as package
// testenv expects them, until its input ends.
func Run(options string) (failed error) {
	runtime.LockOSThread() // children are told when this thread dies
	var o config.Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	say := func(value any, err error) error {
		var a config.Answer
		if err != nil {
			a.Err = err.Error()
		} else if value != nil {
			if a.Value, err = json.Marshal(value); err != nil {
				return err
			}
		}
		return out.Encode(a)
	}
	s := setup(o)
	if err := mount(binary, o.Dir, s.Host); err != nil {
		return say(nil, err)
	}
	ready := config.Ready{Binary: binary, Processes: map[string]int{"init": os.Getpid()}, Host: s.Host, HostRef: s.HostRef, Pool: s.Pool, PoolRef: s.PoolRef, VMs: s.VMs}
	var all []*process
	defer func() {
		for i := len(all) - 1; i >= 0; i-- {
			failed = errors.Join(failed, all[i].stop())
		}
	}()
	for _, p := range []struct {
		path string
		args []string
		got  any
		off  bool
	}{
		{"/usr/sbin/rsyslogd", []string{"-n"}, nil, false},
		{"/usr/sbin/message-switch", []string{"--config", "/etc/message-switch.conf"}, nil, false},
		{"/usr/sbin/squeezed", nil, nil, !o.Squeezed},
		{"/usr/sbin/xcp-networkd", nil, nil, !o.Networkd},
		{"/usr/sbin/xenopsd-xc", nil, nil, false},
		{"/opt/xensource/bin/xapi", []string{"-nowatchdog", "-writereadyfile", "/var/run/xapi_startup.cookie"}, &ready.Port, false},
		{"/usr/bin/stunnel", []string{"/etc/stunnel/xapi.conf"}, &ready.TLSPort, false},
	} {
		if p.off {
			continue
		}
		pr, err := start(p.path, p.args, s, o.Dir)
		if pr != nil {
			all = append(all, pr)
		}
		if err == nil {
			err = pr.answer(p.got)
		}
		if err != nil {
			return say(nil, fmt.Errorf("%s: %w", filepath.Base(p.path), err))
		}
		ready.Processes[pr.name] = pr.cmd.Process.Pid
		if ready.Port != 0 {
			s.Options.Port = ready.Port
		}
	}
	if err := say(ready, nil); err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil
		}
		var errs []error
		for _, p := range all {
			if _, err := p.in.Write(line); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
				continue
			}
			if err := p.answer(nil); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			}
		}
		if err := say(nil, errors.Join(errs...)); err != nil {
			return err
		}
	}
}

// setup is what there is in a dom0, made up here unless the pool has it.
func setup(o config.Options) config.Setup {
	s := config.Setup{Options: o, Root: o.Dir}
	if p := o.Pool; p != nil {
		h := p.Hosts[p.Self]
		s.Host, s.HostRef, s.Pool, s.PoolRef, s.VMs = h.UUID, h.Ref, p.UUID, p.Ref, p.VMs
		return s
	}
	s.Host, s.HostRef, s.Pool, s.PoolRef = uuid(), "OpaqueRef:"+uuid(), uuid(), "OpaqueRef:"+uuid()
	for i := range o.VMs {
		s.VMs = append(s.VMs, config.VM{Ref: "OpaqueRef:" + uuid(), UUID: uuid(), Name: fmt.Sprintf("vm-%d", i+1)})
	}
	return s
}

func uuid() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

func start(path string, args []string, s config.Setup, dir string) (*process, error) {
	p := &process{name: filepath.Base(path), ends: make(chan error, 1)}
	cmdR, cmdW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer cmdR.Close()
	ansR, ansW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ansW.Close()
	log, err := os.Create(filepath.Join(dir, p.name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Args[0] = path
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.ExtraFiles = []*os.File{cmdR, ansW}
	// Signals that the Go runtime sends to its own threads would interrupt system calls
	// that a real dom0's processes finish.
	p.cmd.Env = []string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin", "GODEBUG=asyncpreemptoff=1", "GOGC=400"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.in, p.out = cmdW, bufio.NewReader(ansR)
	go func() { p.ends <- p.cmd.Wait() }()
	setup, err := json.Marshal(s)
	if err != nil {
		return p, err
	}
	_, err = p.in.Write(append(setup, '\n'))
	return p, err
}

// answer reads one answer.
func (p *process) answer(v any) error {
	type read struct {
		line []byte
		err  error
	}
	ch := make(chan read, 1)
	go func() {
		line, err := p.out.ReadBytes('\n')
		ch <- read{line, err}
	}()
	select {
	case r := <-ch:
		if r.err != nil {
			return fmt.Errorf("died, see %s.log: %w", p.name, r.err)
		}
		var a config.Answer
		if err := json.Unmarshal(r.line, &a); err != nil {
			return err
		}
		if a.Err != "" {
			return errors.New(a.Err)
		}
		if v == nil {
			return nil
		}
		return json.Unmarshal(a.Value, v)
	case <-time.After(patience):
		return fmt.Errorf("no answer within %v", patience)
	}
}

// stop ends the process: by the end of its commands, by force if that does not do.
func (p *process) stop() error {
	_ = p.in.Close()
	select {
	case err := <-p.ends:
		if err != nil {
			return fmt.Errorf("%s: %w, see its log", p.name, err)
		}
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ends
		return fmt.Errorf("%s did not end", p.name)
	}
	return nil
}
