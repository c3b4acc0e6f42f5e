package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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

// bootLimit is how long a guest has until its first word: four times of what a
// boot takes beside another on two processors.
const bootLimit = 60 * time.Second

// writeInitramfs makes the guest's file system.
func (s *Suite) writeInitramfs(file string, k *Kernel, t *Tools) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newInitramfs(f)
	for _, d := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/etc", "/opt", "/usr", "/var"} {
		a.dir(d)
	}
	a.device("/dev/console", 5, 1)
	a.device("/dev/null", 1, 3)
	programs := map[string]string{"/init": s.guest, "/bin/dtagent": s.agent, "/bin/dom0": s.dom0, "/bin/busybox": t.Busybox()}
	for _, b := range s.Binary {
		a.dir("/src/" + b.Path)
		programs["/tests/"+filepath.Base(b.file)] = b.file
	}
	for name, from := range programs {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		a.file(name, modeProgram, content)
	}
	for _, m := range k.Modules {
		content, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		a.file("/modules/"+filepath.Base(m), modeFile, content)
	}
	applets, err := t.applets()
	if err != nil {
		return err
	}
	for _, name := range applets {
		if name != "busybox" {
			a.link("/bin/"+name, "busybox")
		}
	}
	p, err := json.Marshal(s.plan(k))
	if err != nil {
		return err
	}
	a.file(plan.Path, modeFile, p)
	return a.close()
}

// Run boots a kernel, runs the suite in it and returns what came of it. The
// Result says why when the guest did not get to its end; the error is for what
// this machine lacks. Scratch files are below dir. What the guest says goes to live
// as well, unless it is nil.
func (s *Suite) Run(ctx context.Context, k *Kernel, t *Tools, dir string, limit time.Duration, live io.Writer) (*Result, error) {
	dir = filepath.Join(dir, k.Suite)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	initramfs, console := filepath.Join(dir, "initramfs"), filepath.Join(dir, "console")
	if err := s.writeInitramfs(initramfs, k, t); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	defer os.Remove(initramfs)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := t.qemu(ctx,
		// Emulated by threads of their own, processors trip over code that another
		// one is patching, which attaching to tracepoints does.
		"-accel", "tcg,thread=single", "-machine", "pc", "-cpu", "qemu64", // -cpu max costs more at each boot
		"-smp", fmt.Sprint(processors), "-m", fmt.Sprint(memoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.Image, "-initrd", initramfs,
		"-append", kernelArgs,
		"-serial", "file:"+console, "-serial", "stdio")
	var messages strings.Builder
	cmd.Stderr = &messages
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r := newResult(k, s)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	boot := time.AfterFunc(bootLimit, cancel)
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
		r.died = fmt.Sprintf("no word from the guest in %v", bootLimit)
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
