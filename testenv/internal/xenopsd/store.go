//go:build linux

package xenopsd

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// store is the metadata store: a file an object (ocaml/xenopsd/lib/xenops_utils.ml).
type store struct{ root string }

// read reads a VM's record, 1,024 bytes at a time.
func (s store) read(vm string) ([]byte, bool) { return s.get("VM/" + vm + "/config") }

func (s store) get(key string) ([]byte, bool) {
	fd, err := unix.Open(path.Join(s.root, key), unix.O_RDONLY, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 1024)
	for {
		n, err := sys.Read(fd, buf)
		if err != nil {
			return out, true
		}
		out = append(out, buf[:n]...)
	}
}

// list gives the names of the objects in a directory.
func (s store) list(dir string) (names []string) {
	all, err := os.ReadDir(path.Join(s.root, dir))
	if err != nil {
		return nil // nothing was ever stored
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func (s store) remove(dir, name string) { _ = unix.Unlink(path.Join(s.root, dir, name)) }

// write stores an object the way that survives a crash: a new file, fsync, rename,
// fsync of the directory.
func (d *daemon) write(t *node.Thread, dir, name, value string) {
	t.Log(node.Debug, "xenops_utils", "TypedTable: Writing %s/%s", dir, name)
	full := ""
	for _, part := range splitPath(path.Join(d.store.root, dir)) {
		full += "/" + part
		_ = unix.Mkdir(full, 0o755) // mostly there already
	}
	tmp := fmt.Sprintf("%s/%06x.tmp", full, rand.Uint32N(1<<24))
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Log(node.Error, "xenops_utils", "%s: %v", tmp, err)
		return
	}
	_ = sys.Write(fd, []byte(value)) // a full disk shows in what is read later
	_ = unix.Fsync(fd)
	t.Delay(config.LayerFsync)
	unix.Close(fd)
	_ = unix.Rename(tmp, full+"/"+name)
	if fd, err := unix.Open(full, unix.O_RDONLY, 0); err == nil {
		_ = unix.Fsync(fd)
		unix.Close(fd)
	}
	_ = unix.Unlink(tmp)
}

func splitPath(p string) []string {
	var out []string
	for p != "/" && p != "." && p != "" {
		out = append([]string{path.Base(p)}, out...)
		p = path.Dir(p)
	}
	return out
}

func domainJSON(vm string, domid int) string {
	return fmt.Sprintf(`{"last_create_time":1795350194.942811,"xsdata":{},"vusbs":[],"vgpus":[],"pcis":[],"vifs":[],"vbds":[],"suspended":false,"qemu_created":false,"memory_dynamic_max":67108864,"memory_dynamic_min":67108864,"shadow_multiplier":1.0,"vcpus":1,"built":false,"paused":true,"hvm":false,"uuid":%q,"domid":%d}`, vm, domid)
}
