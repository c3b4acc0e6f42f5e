package vm

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Modes of files in an initramfs.
const (
	modeDir     = 0o040755
	modeFile    = 0o100644
	modeProgram = 0o100755
	modeLink    = 0o120777
	modeDevice  = 0o020600
)

// initramfs writes a cpio archive of the format that Linux unpacks at boot
// ("newc", Documentation/driver-api/early-userspace/buffer-format.rst). Parents
// of a file are made by themselves. The first error stays, and close returns it.
type initramfs struct {
	w    *bufio.Writer
	n    int64 // bytes written
	ino  int
	dirs []string
	err  error
}

func newInitramfs(w io.Writer) *initramfs {
	return &initramfs{w: bufio.NewWriterSize(w, 1<<20)}
}

func (a *initramfs) dir(name string) {
	name = path.Clean("/" + name)
	if name == "/" || slices.Contains(a.dirs, name) {
		return
	}
	a.dir(path.Dir(name))
	a.dirs = append(a.dirs, name)
	a.entry(name, modeDir, 0, 0, nil)
}

func (a *initramfs) file(name string, mode int, content []byte) {
	a.dir(path.Dir(name))
	a.entry(name, mode, 0, 0, content)
}

func (a *initramfs) link(name, target string) {
	a.file(name, modeLink, []byte(target))
}

func (a *initramfs) device(name string, major, minor int) {
	a.dir(path.Dir(name))
	a.entry(name, modeDevice, major, minor, nil)
}

func (a *initramfs) close() error {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	if a.err == nil {
		a.err = a.w.Flush()
	}
	return a.err
}

func (a *initramfs) entry(name string, mode, major, minor int, content []byte) {
	name = strings.TrimPrefix(name, "/")
	a.ino++
	// ino, mode, uid, gid, nlink, mtime, filesize, dev, rdev, namesize, check
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name))
	a.pad()
	a.write(content)
	a.pad()
}

func (a *initramfs) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(b)
	a.n += int64(n)
	a.err = err
}

func (a *initramfs) pad() {
	a.write(make([]byte, -a.n&3))
}
