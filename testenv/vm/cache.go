package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cache is a directory with QEMU, busybox and kernels.
type cache struct {
	dir  string
	apt  *apt
	warn func(error)
}

// CacheDir returns $DTAGENT_CACHE, or the user's cache directory for dtagent.
func CacheDir() (string, error) {
	if d := os.Getenv("DTAGENT_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("set DTAGENT_CACHE: %w", err)
	}
	return filepath.Join(d, "dtagent"), nil
}

// Kernel is a kernel of Debian, unpacked.
type Kernel struct {
	Suite   string
	Package string   // with its version
	Image   string   // file
	Modules []string // files, in the order of loading
}

// Tools are programs that run on this machine.
type Tools struct {
	dir string
}

// modules are those that the tests need, in the order of loading. Debian builds
// everything else that they need into the kernel.
var modules = []string{"unix_diag"}

// Fill fetches what is missing in dir: the tools, and the newest kernel of each
// suite. A kernel that is there stays in use when the mirror cannot be reached;
// warn is told. Fills of the same dir wait for each other.
func Fill(ctx context.Context, dir string, suites []string, warn func(error)) (tools *Tools, kernels []*Kernel, err error) {
	dir = filepath.Join(dir, "vm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	a, err := newApt(filepath.Join(dir, "apt"))
	if err != nil {
		return nil, nil, err
	}
	c := &cache{dir: dir, apt: a, warn: warn}
	stale := a.update(ctx)
	if stale != nil {
		warn(stale)
	}
	if tools, err = c.tools(ctx); err != nil {
		return nil, nil, errors.Join(stale, err)
	}
	for _, suite := range suites {
		k, err := c.kernel(ctx, suite, tools)
		if err != nil {
			return nil, nil, errors.Join(stale, fmt.Errorf("kernel of %s: %w", suite, err))
		}
		kernels = append(kernels, k)
	}
	return tools, kernels, nil
}

func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}

// renewed makes dir by fill in a directory beside it, unless dir was made from
// the same origin.
func renewed(dir, origin string, fill func(tmp string) error) error {
	if was, err := os.ReadFile(filepath.Join(dir, "origin")); err == nil && string(was) == origin {
		return nil
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "origin"), []byte(origin), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// tools unpacks QEMU and busybox with all libraries, so that it does not matter
// what the machine has.
func (c *cache) tools(ctx context.Context) (*Tools, error) {
	packages := []string{"qemu-system-x86", "busybox-static"}
	dir := filepath.Join(c.dir, "tools")
	err := renewed(dir, strings.Join(append(packages, toolSuite), " "), func(tmp string) error {
		files, err := c.apt.withDependencies(ctx, toolSuite, packages...)
		if err != nil {
			return err
		}
		for _, f := range files {
			if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", f, tmp).CombinedOutput(); err != nil {
				return fmt.Errorf("dpkg-deb -x %s: %w: %s", filepath.Base(f), err, bytes.TrimSpace(out))
			}
			if err := os.Remove(f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tools: %w", err)
	}
	return &Tools{dir}, nil
}

// kernel unpacks the image and the modules of a suite's newest kernel.
func (c *cache) kernel(ctx context.Context, suite string, t *Tools) (*Kernel, error) {
	dir := filepath.Join(c.dir, "kernels", suite)
	pkg, err := c.apt.kernelOf(ctx, suite)
	if err != nil {
		return nil, err
	}
	err = renewed(dir, pkg+" "+strings.Join(modules, " "), func(tmp string) error {
		deb, err := c.apt.download(ctx, filepath.Join(tmp, "deb"), pkg)
		if err != nil {
			return err
		}
		if err := c.unpackKernel(ctx, deb, tmp, t); err != nil {
			return err
		}
		return os.RemoveAll(filepath.Join(tmp, "deb"))
	})
	if err != nil {
		origin, missing := os.ReadFile(filepath.Join(dir, "origin"))
		if missing != nil {
			return nil, err
		}
		c.warn(fmt.Errorf("kernel of %s: %w", suite, err))
		pkg, _, _ = strings.Cut(string(origin), " ")
	}
	k := &Kernel{Suite: suite, Package: pkg, Image: filepath.Join(dir, "vmlinuz")}
	for _, m := range modules {
		k.Modules = append(k.Modules, filepath.Join(dir, m+".ko"))
	}
	return k, nil
}

// unpackKernel takes vmlinuz and the modules out of a package.
func (c *cache) unpackKernel(ctx context.Context, deb, dir string, t *Tools) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer out.Close()
	found := map[string]bool{}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
		base := path.Base(h.Name)
		if strings.HasPrefix(base, "vmlinuz-") {
			base = "vmlinuz"
		}
		name, _, _ := strings.Cut(base, ".ko") // .ko, .ko.xz
		wanted := base == "vmlinuz"
		for _, m := range modules {
			wanted = wanted || name == m && name != base
		}
		if !wanted {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", filepath.Base(deb), h.Name, err)
		}
		if strings.HasSuffix(base, ".xz") {
			base = strings.TrimSuffix(base, ".xz")
			if content, err = t.unxz(ctx, content); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, base), content, 0o644); err != nil {
			return err
		}
		found[base] = true
	}
	if !found["vmlinuz"] {
		return fmt.Errorf("%s: no vmlinuz", filepath.Base(deb))
	}
	for _, m := range modules {
		if !found[m+".ko"] {
			return fmt.Errorf("%s: no module %s", filepath.Base(deb), m)
		}
	}
	return nil
}

// Busybox returns the file of a static busybox.
func (t *Tools) Busybox() string { return filepath.Join(t.dir, "bin", "busybox") }

func (t *Tools) unxz(ctx context.Context, b []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, t.Busybox(), "unxz", "-c")
	cmd.Stdin = bytes.NewReader(b)
	return cmd.Output()
}

// applets returns the names under which busybox is a program.
func (t *Tools) applets() ([]string, error) {
	out, err := exec.Command(t.Busybox(), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// qemu returns the command of QEMU, by its own libraries and loader.
func (t *Tools) qemu(ctx context.Context, args ...string) *exec.Cmd {
	in := func(p string) string { return filepath.Join(t.dir, p) }
	libs := strings.Join([]string{in("lib/x86_64-linux-gnu"), in("usr/lib/x86_64-linux-gnu")}, ":")
	all := append([]string{"--library-path", libs, in("usr/bin/qemu-system-x86_64"), "-L", in("usr/share/qemu"), "-L", in("usr/share/seabios")}, args...)
	cmd := exec.CommandContext(ctx, in("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), all...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+in("usr/lib/x86_64-linux-gnu/qemu"))
	return cmd
}
