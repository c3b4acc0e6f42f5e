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
	path string
	args []string
	cmd  *exec.Cmd // nil: not started
	in   *os.File
	out  *bufio.Reader
	ends chan error
}

// patience is how long a process may take to come up or to obey. It only ends a
// hang: an emulated machine takes ten times as long as a real one.
const patience = time.Minute

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
	if err := certificates(o.Pool); err != nil {
		return say(nil, err)
	}
	if err := showMachine(s.Root); err != nil {
		return say(nil, err)
	}
	ready := config.Ready{Binary: binary, Processes: map[string]int{"init": os.Getpid()}, Host: s.Host, HostRef: s.HostRef, HostName: s.HostName, Pool: s.Pool, PoolRef: s.PoolRef, VMs: s.VMs}
	all := processes{setup: s, now: ready.Processes}
	defer func() { failed = errors.Join(failed, all.stop()) }()
	for _, p := range []struct {
		path string
		args []string
		got  any
		off  bool
	}{
		{"/usr/sbin/rsyslogd", []string{"-n"}, nil, false},
		{"/usr/sbin/message-switch", []string{"--config", "/etc/message-switch.conf"}, nil, false},
		{"/usr/sbin/forkexecd", nil, nil, !o.Forkexecd},
		{"/usr/sbin/squeezed", nil, nil, !o.Squeezed},
		{"/usr/sbin/xcp-networkd", nil, nil, !o.Networkd},
		{"/usr/sbin/xcp-rrdd", nil, nil, !o.RRDD},
		{"/usr/sbin/xenopsd-xc", nil, nil, false},
		{"/opt/xensource/bin/xapi", []string{"-nowatchdog", "-writereadyfile", "/var/run/xapi_startup.cookie"}, &ready.Port, false},
		{"/usr/bin/stunnel", []string{"/etc/stunnel/xapi.conf"}, &ready.TLSPort, false},
	} {
		if p.off {
			continue
		}
		pr := &process{name: filepath.Base(p.path), path: p.path, args: p.args}
		all.all = append(all.all, pr)
		if err := all.start(pr, p.got); err != nil {
			return say(nil, err)
		}
		if ready.Port != 0 {
			all.setup.Options.Port = ready.Port
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
		value, err := all.obey(line)
		if err := say(value, err); err != nil {
			return err
		}
	}
}

// setup is what there is in a dom0, made up here unless the pool has it.
func setup(o config.Options) config.Setup {
	s := config.Setup{Options: o, Root: o.Dir}
	if p := o.Pool; p != nil {
		h := p.Hosts[p.Self]
		s.Host, s.HostRef, s.HostName, s.Pool, s.PoolRef, s.VMs = h.UUID, h.Ref, h.Name, p.UUID, p.Ref, p.VMs
		return s
	}
	s.Host, s.HostRef, s.HostName, s.Pool, s.PoolRef = uuid(), "OpaqueRef:"+uuid(), config.HostName, uuid(), "OpaqueRef:"+uuid()
	for i := range o.VMs {
		s.VMs = append(s.VMs, config.VM{Ref: "OpaqueRef:" + uuid(), UUID: uuid(), Name: fmt.Sprintf("vm-%d", i+1)})
	}
	return s
}

func uuid() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}

// start starts the process, whose name, path and args are set.
func (p *process) start(s config.Setup) error {
	setup, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmdR, cmdW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer cmdR.Close()
	ansR, ansW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ansW.Close()
	log, err := os.OpenFile(filepath.Join(s.Root, p.name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	gateR, gateW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer gateR.Close()
	defer gateW.Close()
	// As from an init script: the process is known before it executes its program.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read go <&5; exec 5<&- "$0" "$@"`, p.path}, p.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{cmdR, ansW, gateR}
	// Signals that the Go runtime sends to its own threads would interrupt system calls
	// that a real dom0's processes finish.
	cmd.Env = []string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin", "GODEBUG=asyncpreemptoff=1", "GOGC=400"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ends := make(chan error, 1)
	p.cmd, p.in, p.out, p.ends = cmd, cmdW, bufio.NewReader(ansR), ends
	go func() { ends <- cmd.Wait() }()
	if err := show(s.Root, cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := gateW.WriteString("\n"); err != nil {
		return err
	}
	_, err = p.in.Write(append(setup, '\n'))
	return err
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
	if p.cmd == nil {
		return nil
	}
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
