package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// toolSuite has QEMU and busybox. QEMU is that of the backports: the 7.2 of
// bookworm emulates Linux 6.12 with errors.
const toolSuite = "bookworm-backports"

// Tools are programs that run on this machine.
type Tools struct {
	dir string
}

// Tools returns QEMU and busybox with all libraries, so that it does not matter
// what the machine has.
func (c *Cache) Tools(ctx context.Context) (*Tools, error) {
	dir, err := c.Tree(ctx, "tools", toolSuite, "qemu-system-x86", "busybox-static")
	if err != nil {
		return nil, err
	}
	return &Tools{dir}, nil
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

// QEMU returns the command of QEMU.
func (t *Tools) QEMU(ctx context.Context, args ...string) *exec.Cmd {
	in := func(p string) string { return filepath.Join(t.dir, p) }
	cmd := Program(ctx, t.dir, "usr/bin/qemu-system-x86_64", append([]string{"-L", in("usr/share/qemu"), "-L", in("usr/share/seabios")}, args...)...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+in("usr/lib/x86_64-linux-gnu/qemu"))
	return cmd
}

// Program returns the command of a program in a tree of packages, with the
// libraries and the loader that are there.
func Program(ctx context.Context, tree, program string, args ...string) *exec.Cmd {
	in := func(p string) string { return filepath.Join(tree, p) }
	libs := strings.Join([]string{in("lib/x86_64-linux-gnu"), in("usr/lib/x86_64-linux-gnu")}, ":")
	all := append([]string{"--library-path", libs, in(program)}, args...)
	return exec.CommandContext(ctx, in("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), all...)
}
