//go:build linux

package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"github.com/xenserver/dtagent/testenv/config"
)

// showMachine makes the directory that shows the dom0's processes, as /proc does all
// of the machine's, with this one in it.
func showMachine(root string) error {
	dir := config.ProcDir(root)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for _, name := range []string{"self", "net", "stat", "uptime"} {
		if err := os.Symlink(filepath.Join("/proc", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return show(root, os.Getpid())
}

// show adds a process.
func show(root string, pid int) error {
	name := strconv.Itoa(pid)
	return os.Symlink(filepath.Join("/proc", name), filepath.Join(config.ProcDir(root), name))
}

// hide removes one that has ended.
func hide(root string, pid int) {
	_ = os.Remove(filepath.Join(config.ProcDir(root), strconv.Itoa(pid))) // a link to nothing does no harm
}
