package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Flavours of Debian's kernels.
const (
	Cloud = "cloud-amd64" // has what virtual machines need, and is small
	Full  = "amd64"       // has all drivers, and can be a dom0
)

// Kernel is a kernel of Debian, unpacked.
type Kernel struct {
	Suite   string
	Flavour string
	Package string   // linux-image-* with its version
	Image   string   // file
	Modules []string // files, in the order of loading
}

// Kernel returns the newest kernel of a suite, with these modules and those that
// they need.
func (c *Cache) Kernel(ctx context.Context, suite, flavour string, modules ...string) (*Kernel, error) {
	t, err := c.Tools(ctx) // unpack modules
	if err != nil {
		return nil, err
	}
	unlock, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := filepath.Join(c.dir, "kernels", suite+"-"+flavour)
	err = c.keep(dir, "kernel of "+suite, func() error { return c.renewKernel(ctx, dir, suite, flavour) })
	if err != nil {
		return nil, fmt.Errorf("%w\nLeave the suite %s out, or try again later if it could not be reached. "+
			"If Debian packs its kernels in a new way, kernelOf and kernelIn in testenv/vm have to learn it", err, suite)
	}
	origin, err := os.ReadFile(filepath.Join(dir, "origin"))
	if err != nil {
		return nil, err
	}
	k := &Kernel{Suite: suite, Flavour: flavour}
	k.Package, _, _ = strings.Cut(string(origin), " ")
	image, tree, err := kernelIn(dir)
	if err != nil {
		return nil, err
	}
	k.Image = image
	m := &moduleTree{dir: tree, plain: filepath.Join(dir, "plain"), unxz: func(b []byte) ([]byte, error) { return t.unxz(ctx, b) }}
	if k.Modules, err = m.inOrder(modules); err != nil {
		return nil, fmt.Errorf("kernel of %s (%s): %w", suite, k.Package, err)
	}
	return k, nil
}

// renewKernel unpacks the suite's newest kernel unless it is there.
func (c *Cache) renewKernel(ctx context.Context, dir, suite, flavour string) error {
	a, err := c.apt(ctx, suite)
	if err != nil {
		return err
	}
	packages, err := a.kernelOf(ctx, flavour)
	if err != nil {
		return err
	}
	return renewed(dir, strings.Join(packages, " "), func(tmp string) error {
		c.log("fetching the kernel of " + suite + ": " + strings.Join(packages, ", "))
		files, err := a.download(ctx, filepath.Join(tmp, "deb"), packages...)
		if err != nil {
			return err
		}
		if err := unpack(ctx, tmp, files); err != nil {
			return err
		}
		if _, _, err := kernelIn(tmp); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(packages, ", "), err)
		}
		return os.Remove(filepath.Join(tmp, "deb"))
	})
}

// kernelIn finds the image and the directory of the modules in unpacked packages.
func kernelIn(dir string) (image, modules string, err error) {
	one := func(what string, patterns ...string) (string, error) {
		var found []string
		for _, p := range patterns {
			f, err := filepath.Glob(filepath.Join(dir, p))
			if err != nil {
				return "", err
			}
			found = append(found, f...)
		}
		if len(found) != 1 {
			return "", fmt.Errorf("%d files are %s, want one of %s", len(found), what, strings.Join(patterns, ", "))
		}
		return found[0], nil
	}
	image, e1 := one("a kernel", "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	modules, e2 := one("modules", "lib/modules/*/kernel", "usr/lib/modules/*/kernel")
	return image, filepath.Dir(modules), errors.Join(e1, e2)
}
