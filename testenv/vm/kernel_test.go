package vm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

// write makes files below a new directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(file), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(content), 0o644)))
	}
	return dir
}

func TestKernelIn(t *testing.T) {
	for _, c := range []struct{ name, image, module string }{
		{"one package", "boot/vmlinuz-6.1", "lib/modules/6.1/kernel/net/x.ko"},
		{"split", "usr/lib/modules/7.2/vmlinuz", "usr/lib/modules/7.2/kernel/net/x.ko.xz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, map[string]string{c.image: "", c.module: ""})
			image, modules, err := kernelIn(dir)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(image, filepath.Join(dir, c.image)))
			qt.Check(t, qt.Equals(modules, filepath.Dir(filepath.Dir(filepath.Dir(filepath.Join(dir, c.module))))))
		})
	}
	_, _, err := kernelIn(write(t, map[string]string{"efi/linux.efi": ""}))
	qt.Check(t, qt.ErrorMatches(err, "(?s)0 files are a kernel, want one of boot/vmlinuz-.*0 files are modules.*"))
}

// TestKernelOffline: what is in the cache is used when a suite cannot be reached,
// and the error says what to do when there is nothing.
func TestKernelOffline(t *testing.T) {
	bin := t.TempDir()
	for _, program := range []string{"apt-get", "apt-cache"} {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\necho E: no network >&2; exit 100\n"), 0o755)))
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("DEBIAN_MIRROR", "http://debian.invalid/debian")
	dir := write(t, map[string]string{
		"vm/trees/tools/origin":                                       "qemu-system-x86 busybox-static " + toolSuite,
		"vm/kernels/bookworm-cloud-amd64/origin":                      "linux-image-6.1=6.1.176-1",
		"vm/kernels/bookworm-cloud-amd64/boot/vmlinuz-6.1":            "",
		"vm/kernels/bookworm-cloud-amd64/lib/modules/6.1/kernel/x.ko": "",
	})
	var said []string
	c, err := OpenCache(dir, func(line string) { said = append(said, line) })
	qt.Assert(t, qt.IsNil(err))
	k, err := c.Kernel(t.Context(), "bookworm", Cloud)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(k.Package, "linux-image-6.1=6.1.176-1"))
	qt.Check(t, qt.Equals(k.Image, filepath.Join(dir, "vm/kernels/bookworm-cloud-amd64/boot/vmlinuz-6.1")))
	qt.Assert(t, qt.HasLen(said, 1))
	qt.Check(t, qt.StringContains(said[0], "kernel of bookworm: going on with what is in the cache"))
	_, err = c.Kernel(t.Context(), "sid", Cloud)
	qt.Check(t, qt.ErrorMatches(err, "(?s)kernel of sid: .*(no network|needs ).*Leave the suite sid out.*"))
}
