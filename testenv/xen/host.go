package xen

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/xenserver/dtagent/testenv/vm"
)

// suite is bookworm: its Xen is of the series 4.17, as that of XCP-ng 8.3 is.
const suite = "bookworm"

// packages are those of dom0, besides what they need themselves.
var packages = []string{
	"xen-system-amd64", "xenstore-utils",
	"qemu-system-xen", "qemu-utils", // the backend qdisk, and its images
	"mount", "util-linux", // losetup, fallocate
	"bash", "coreutils", "sed", "grep", "procps", "iproute2", "e2fsprogs", "xz-utils", // what Xen's hotplug scripts call; mke2fs and xz run on this machine
}

// Modules of the kernel in dom0 and in its guests; in dom0 for its disk, for Xen,
// and for the tests.
var (
	dom0Modules  = append([]string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "xenfs", "xen_privcmd", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_blkback", "loop"}, vm.Modules...)
	guestModules = []string{"xen_blkfront"}
)

// Host is what a Xen host is made of.
type Host struct {
	tools *vm.Tools
	tree  string     // dom0's packages
	dom0  *vm.Kernel // the cloud flavour cannot be dom0
	guest *vm.Kernel // the same with other modules
}

// Fetch gets what is not in the cache yet.
func Fetch(ctx context.Context, c *vm.Cache) (h *Host, err error) {
	h = &Host{}
	if h.tools, err = c.Tools(ctx); err != nil {
		return nil, err
	}
	if h.tree, err = c.Tree(ctx, "xen", suite, packages...); err != nil {
		return nil, err
	}
	if h.dom0, err = c.Kernel(ctx, suite, vm.Full, dom0Modules...); err != nil {
		return nil, err
	}
	h.guest, err = c.Kernel(ctx, suite, vm.Full, guestModules...)
	return h, err
}

// hypervisor unpacks Xen, which QEMU does not boot compressed.
func (h *Host) hypervisor(file string) error {
	packed, err := h.one("boot/xen-*-amd64.gz")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(packed)
	if err != nil {
		return err
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(r)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", packed, err)
	}
	return os.WriteFile(file, b, 0o644)
}

// one returns the only file of dom0's packages that a pattern matches.
func (h *Host) one(pattern string) (string, error) {
	files, err := filepath.Glob(filepath.Join(h.tree, pattern))
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d files are %s, want one", len(files), pattern)
	}
	if err != nil {
		return "", fmt.Errorf("packages of Xen: %w", err)
	}
	return files[0], nil
}
