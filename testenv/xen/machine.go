package xen

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xenserver/dtagent/testenv/vm"
	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// Packages are those whose tests run in dom0: what the agent takes from the
// kernel, and what only a Xen host has.
var Packages = []vm.Package{
	{Path: "testenv/xen/dom0", Run: "Dom0$"},
	{Path: "bpf", Run: "Kernel$"},
	{Path: "probes", Run: "Kernel$"},
	{Path: "probes/target", Run: "."},
}

// Sizes of the machine. What dom0 leaves is its guests'.
const (
	memoryMiB  = 1792
	dom0MiB    = 1024
	processors = 2
)

// testLimit is that of one package's tests, four times of what the longest takes
// on two busy processors.
const testLimit = 25 * time.Minute

// bootLimit is how long dom0 has until its first word: four times of what it
// takes on two busy processors.
const bootLimit = 3 * time.Minute

// dom0Args are those of vm's kernels, with the console that Xen writes for dom0.
const dom0Args = "console=hvc0 panic=-1 loglevel=5 nokaslr rcupdate.rcu_expedited=1"

// domuDisk is the size of a disk that a guest gets.
const domuDisk = 64 << 20

//go:embed toolstack.sh
var toolstack []byte

// dom0Root is where dom0's userland is mounted in its first file system.
const dom0Root = "/xen"

// Machine makes a Xen host of what was fetched, that runs the suite in its dom0.
// Its disks are below dir.
func (h *Host) Machine(ctx context.Context, dir string, s *vm.Suite) (*vm.Machine, error) {
	hypervisor, disk, domu := filepath.Join(dir, "hypervisor"), filepath.Join(dir, "dom0.disk"), filepath.Join(dir, "domu.disk")
	kernel, script := filepath.Join(dir, "vmlinux"), filepath.Join(dir, "toolstack.sh")
	xl, err := h.one("usr/lib/xen-*/bin/xl")
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		h.hypervisor(hypervisor),
		h.vmlinux(ctx, kernel),
		h.userland(ctx, dir, disk, kernel, s),
		os.WriteFile(script, toolstack, 0o755),
		os.WriteFile(domu, nil, 0o644),
	)
	if err != nil {
		return nil, err
	}
	if err := os.Truncate(domu, domuDisk); err != nil {
		return nil, err
	}
	path := "/usr/sbin:/usr/bin:" + strings.TrimPrefix(filepath.Dir(xl), h.tree)
	p := plan.Plan{Modules: h.dom0.Loads()}
	p.Runs = append(p.Runs, plan.Run{Name: "toolstack", Dir: "/", Argv: []string{"/bin/sh", "/bin/toolstack.sh", path}})
	s.Limit = testLimit
	for _, r := range append([]plan.Run{{Name: "dtagent check --legacy", Dir: "/", Argv: []string{"/bin/dtagent", "check", "--legacy"}}}, s.Runs()...) {
		r.Argv = append([]string{"/bin/chroot", dom0Root, "/usr/bin/env", "--chdir=" + r.Dir, "PATH=" + path, "HOME=/root", "TMPDIR=/tmp", "LC_ALL=C"}, r.Argv...)
		r.Dir = "/"
		p.Runs = append(p.Runs, r)
	}
	return &vm.Machine{
		Name: "xen", Kernel: h.dom0, Plan: p, BootLimit: bootLimit,
		Programs: map[string]string{"/bin/toolstack.sh": script},
		Dirs:     []string{dom0Root},
		Command: func(ctx context.Context, initramfs, console string) *exec.Cmd {
			return h.tools.QEMU(ctx,
				"-accel", "tcg,thread=single", "-machine", "pc", "-cpu", "qemu64", // as vm's machines
				"-smp", fmt.Sprint(processors), "-m", fmt.Sprint(memoryMiB),
				"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
				"-kernel", hypervisor,
				"-append", fmt.Sprintf("console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning dom0_mem=%[1]dM,max:%[1]dM dom0_max_vcpus=%d", dom0MiB, processors),
				"-initrd", fmt.Sprintf("%s %s,%s", kernel, dom0Args, initramfs), // Xen's modules
				"-drive", "file="+disk+",if=virtio,format=raw,cache=unsafe",
				"-drive", "file="+domu+",if=virtio,format=raw,cache=unsafe",
				"-serial", "file:"+console, "-serial", "stdio")
		},
	}, nil
}

// userland makes dom0's disk: its packages, the suite's programs, and what a
// guest boots from.
func (h *Host) userland(ctx context.Context, dir, disk, kernel string, s *vm.Suite) error {
	root := filepath.Join(dir, "userland")
	defer os.RemoveAll(root)
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := stage(h.tree, root); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(root, place(name)) }
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "etc", "src", "domu", "var/log/xen/console", "var/lib/xen", "var/lock"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"bin/sh": "bash", "var/run": "/run"} {
		os.RemoveAll(in(name))
		if err := os.Symlink(target, in(name)); err != nil {
			return err
		}
	}
	for _, b := range s.Binary {
		if err := os.MkdirAll(in("src/"+b.Path), 0o755); err != nil {
			return err
		}
	}
	files := s.Programs()
	files["domu/vmlinux"] = kernel
	for name, from := range files {
		if err := copyFile(from, in(filepath.Clean("/" + name)[1:])); err != nil {
			return err
		}
	}
	if err := h.domu(ctx, dir, in("domu/initramfs")); err != nil {
		return err
	}
	return h.image(ctx, disk, root)
}

// domu makes what a guest finds in memory when it boots.
func (h *Host) domu(ctx context.Context, dir, file string) error {
	program := filepath.Join(dir, "domu")
	if err := vm.Build(ctx, "build", "-o", program, "./testenv/xen/cmd/domu"); err != nil {
		return err
	}
	var modules []string
	files := map[string]string{"/init": program}
	for i, name := range h.guest.Loads() {
		files[name] = h.guest.Modules[i]
		modules = append(modules, name)
	}
	p, err := json.Marshal(plan.Plan{Modules: modules})
	if err != nil {
		return err
	}
	list := filepath.Join(dir, "domu.json")
	if err := os.WriteFile(list, p, 0o644); err != nil {
		return err
	}
	files[plan.Path] = list
	return vm.WriteInitramfs(file, []string{"/dev", "/proc", "/sys"}, files, nil)
}

// Run boots the machine and returns what came of the suite, as vm.Suite.RunIn does.
func (h *Host) Run(ctx context.Context, s *vm.Suite, m *vm.Machine, dir string, limit time.Duration, live io.Writer) (*vm.Result, error) {
	return s.RunIn(ctx, m, h.tools, dir, limit, live)
}
