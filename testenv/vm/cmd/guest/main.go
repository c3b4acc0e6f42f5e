//go:build linux

// Command guest is the first process of a virtual machine: it makes the file
// systems, runs the programs of the plan and turns the machine off.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// line is the serial line to the host.
const line = "/dev/ttyS1"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init process of a test machine")
		os.Exit(2)
	}
	out, err := boot()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err) // the console
		end(nil)
	}
	if err := work(out); err != nil {
		tell(out, plan.Mark{Error: err.Error()})
	} else {
		tell(out, plan.Mark{Done: true})
	}
	end(out)
}

// boot mounts what a system has, and opens the line to the host. It leaves
// tracefs to the agent, as a machine without debugging tools does.
func boot() (*os.File, error) {
	for _, m := range []struct{ fstype, dir string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"securityfs", "/sys/kernel/security"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w", m.fstype, m.dir, err)
		}
	}
	out, err := os.OpenFile(line, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return out, raw(int(out.Fd()))
}

// raw lets bytes pass a terminal as they are.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("terminal %s: %w", line, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("terminal %s: %w", line, err)
	}
	return nil
}

func work(out *os.File) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	var up unix.Sysinfo_t
	if err := unix.Sysinfo(&up); err != nil {
		return err
	}
	tell(out, plan.Mark{Release: unix.ByteSliceToString(uts.Release[:]), Seconds: float64(up.Uptime)})
	b, err := os.ReadFile(plan.Path)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("%s: %w", plan.Path, err)
	}
	for _, file := range p.Modules {
		if err := loadModule(file); err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	for _, r := range p.Runs {
		tell(out, plan.Mark{Begin: r.Name})
		start := time.Now()
		exit, err := run(r, out)
		if err != nil {
			return fmt.Errorf("run %s: %w", r.Name, err)
		}
		tell(out, plan.Mark{End: r.Name, Exit: exit, Seconds: time.Since(start).Seconds()})
	}
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// run starts a program and waits for its end. It waits for every child, as
// orphans are the first process's.
func run(r plan.Run, out *os.File) (exit int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(r.Argv[0], r.Argv, &os.ProcAttr{
		Dir:   r.Dir,
		Env:   []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "LC_ALL=C", "DTAGENT_BINARIES=/bin"},
		Files: []*os.File{null, out, out},
	})
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case pid == p.Pid:
			return status.ExitStatus(), nil // -1 after a signal
		}
	}
}

// tell writes a mark on a line of its own, whatever stands before it.
func tell(out *os.File, m plan.Mark) {
	out.WriteString(strings.Join([]string{"", m.String(), ""}, "\n"))
}

// end turns the machine off when the last byte has gone.
func end(out *os.File) {
	if out != nil {
		unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // tcdrain
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
