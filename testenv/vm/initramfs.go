package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
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

// WriteInitramfs makes what a kernel unpacks into memory at its boot: empty
// directories, copies of files, and links, the last two by their names there.
func WriteInitramfs(file string, dirs []string, files, links map[string]string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newInitramfs(f)
	for _, d := range dirs {
		a.dir(d)
	}
	a.device("/dev/console", 5, 1)
	a.device("/dev/null", 1, 3)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content, err := os.ReadFile(files[name])
		if err != nil {
			return err
		}
		a.file(name, modeProgram, content)
	}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		a.link(name, links[name])
	}
	return a.close()
}

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
