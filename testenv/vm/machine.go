package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// Size of a machine. Two processors, since records of two have to be put in order.
const (
	memoryMiB  = 1024
	processors = 2
)

// kernelArgs: a panic ends QEMU; warnings are shown. Detaching from tracepoints
// waits for RCU, once for each, which takes most of the tests' time unless it is
// expedited.
const kernelArgs = "console=ttyS0 panic=-1 loglevel=5 mitigations=off nokaslr rcupdate.rcu_expedited=1"

// bootLimit is how long a guest has until its first word. It only ends a hang: a
// boot takes 15 s beside another on two processors.
const bootLimit = 3 * time.Minute

// Machine is what a suite runs in.
type Machine struct {
	Name      string // of its scratch directory
	Kernel    *Kernel
	Plan      plan.Plan
	Programs  map[string]string                                              // files, by their names in the initramfs
	Dirs      []string                                                       // more directories in the initramfs
	BootLimit time.Duration                                                  // until the guest's first word
	Command   func(ctx context.Context, initramfs, console string) *exec.Cmd // its stdin and stdout are the guest's line
}

// machine returns the one that boots a kernel by itself.
func (s *Suite) machine(k *Kernel, t *Tools) *Machine {
	m := &Machine{Name: k.Suite, Kernel: k, Plan: plan.Plan{Modules: k.Loads(), Runs: s.Runs()}, Programs: s.Programs(), BootLimit: bootLimit}
	for _, b := range s.Binary {
		m.Dirs = append(m.Dirs, "/src/"+b.Path)
	}
	m.Command = func(ctx context.Context, initramfs, console string) *exec.Cmd {
		return t.QEMU(ctx,
			// Emulated by threads of their own, processors trip over code that another
			// one is patching, which attaching to tracepoints does.
			"-accel", "tcg,thread=single", "-machine", "pc", "-cpu", "qemu64", // -cpu max costs more at each boot
			"-smp", fmt.Sprint(processors), "-m", fmt.Sprint(memoryMiB),
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
			"-kernel", k.Image, "-initrd", initramfs,
			"-append", kernelArgs,
			"-serial", "file:"+console, "-serial", "stdio")
	}
	return m
}

// initramfs writes the guest's first file system.
func (s *Suite) initramfs(file string, m *Machine, t *Tools) error {
	files, links := map[string]string{"/init": s.guest, "/bin/busybox": t.Busybox()}, map[string]string{}
	maps.Copy(files, m.Programs)
	for i, name := range m.Kernel.Loads() {
		files[name] = m.Kernel.Modules[i]
	}
	applets, err := t.applets()
	if err != nil {
		return err
	}
	for _, name := range applets {
		if name != "busybox" {
			links["/bin/"+name] = "busybox"
		}
	}
	p, err := json.Marshal(m.Plan)
	if err != nil {
		return err
	}
	files[plan.Path] = file + ".plan"
	if err := os.WriteFile(files[plan.Path], p, 0o644); err != nil {
		return err
	}
	dirs := append([]string{"/dev", "/proc", "/sys", "/tmp", "/run", "/etc", "/opt", "/usr", "/var"}, m.Dirs...)
	return WriteInitramfs(file, dirs, files, links)
}

// Run boots a kernel, runs the suite in it and returns what came of it, as RunIn
// does.
func (s *Suite) Run(ctx context.Context, k *Kernel, t *Tools, dir string, limit time.Duration, live io.Writer) (*Result, error) {
	return s.RunIn(ctx, s.machine(k, t), t, dir, limit, live)
}

// RunIn boots a machine, which does what its plan says, and returns what came of
// it. The Result says why when the guest did not get to its end; the error is for
// what this machine lacks. Scratch files are below dir. What the guest says goes
// to live as well, unless it is nil.
func (s *Suite) RunIn(ctx context.Context, m *Machine, t *Tools, dir string, limit time.Duration, live io.Writer) (*Result, error) {
	dir = filepath.Join(dir, m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	initramfs, console := filepath.Join(dir, "initramfs"), filepath.Join(dir, "console")
	if err := s.initramfs(initramfs, m, t); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	defer os.Remove(initramfs)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := m.Command(ctx, initramfs, console)
	var messages strings.Builder
	cmd.Stderr = &messages
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r := newResult(m.Kernel, s)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	boot := time.AfterFunc(m.BootLimit, cancel)
	in := io.Reader(out)
	if live != nil {
		in = io.TeeReader(out, live)
	}
	r.read(ctx, in, func() { boot.Stop() })
	err = cmd.Wait()
	boot.Stop()
	r.Wall = time.Since(start)
	text, _ := os.ReadFile(console)
	r.console = strings.ToValidUTF8(strings.ReplaceAll(string(text), "\r", ""), "?")
	switch {
	case r.done:
	case r.Release == "" && ctx.Err() != nil:
		r.died = fmt.Sprintf("no word from the guest in %v", m.BootLimit)
	case ctx.Err() != nil:
		r.died = fmt.Sprintf("not done after %v", limit)
	case err != nil:
		r.died = fmt.Sprintf("qemu: %v: %s", err, strings.TrimSpace(messages.String()))
	default:
		r.died = "the guest ended before its work"
	}
	r.finish()
	return r, nil
}

// lines calls f for each line of r, and for what stands after the last.
func lines(r io.Reader, f func(line string)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			f(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
