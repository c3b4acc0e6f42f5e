package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// Room below which a disk is said to be short of it, in bytes: bugtool files are
// trimmed to 100 MB, the queues of endpoints to 256 MiB.
const (
	leastLogRoom   = 128 << 20
	leastQueueRoom = 256 << 20
)

// directory says whether files can be made in path, which the agent makes when it is
// not there, and whether there is room. It changes nothing.
func directory(name, path string, least uint64) Item {
	at, made := path, ""
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return fails(name, at+" is no directory", "remove it, or name another directory")
		}
		if err == nil {
			break
		}
		if up := filepath.Dir(at); errors.Is(err, fs.ErrNotExist) && up != at {
			at, made = up, ", made when needed"
			continue
		}
		return fails(name, plain(err), "see the directory, or name another")
	}
	if err := unix.Faccessat(unix.AT_FDCWD, at, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		i := fails(name, at+": not writable: "+err.Error(), "make it writable, or name another directory")
		if errors.Is(err, unix.EACCES) && os.Geteuid() != 0 {
			i = unknown(name, at+": not writable for who runs this command", "run as root, as the agent does")
		}
		return i
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return wider(name, path+made, "room not known: "+err.Error(), "nothing")
	}
	free := st.Bavail * uint64(st.Bsize)
	detail := fmt.Sprintf("%s%s, %d MiB free", path, made, free>>20)
	if free < least {
		return wider(name, detail, fmt.Sprintf("less than %d MiB are free; what does not fit is dropped, and counted", least>>20), "make room on the disk")
	}
	return works(name, detail)
}

// settings says whether the file of settings is good.
func (h host) settings(path string, err error) Item {
	const name = "settings"
	switch {
	case err != nil:
		return fails(name, err.Error(), "correct it; until then the agent does not start").needed()
	case path == "" || !h.exists(path):
		return works(name, "defaults and flags, no file")
	}
	return works(name, path)
}

func parent(path string) string { return filepath.Dir(path) }

// running asks the agent on the control socket.
func running(ctx context.Context, socket, version string) Item {
	const name = "agent"
	s, err := control.NewClient(socket).Status(ctx)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return absent(name, "none runs on "+socket, "systemctl start dtagent, or dtagent run")
	case errors.Is(err, fs.ErrPermission) || err != nil && os.Geteuid() != 0:
		return unknown(name, plain(err), "run as root")
	case err != nil:
		return fails(name, plain(err), "see journalctl -u dtagent; restart it")
	}
	detail := fmt.Sprintf("version %s runs, pid %d, for %s", s.Version, s.PID, (time.Duration(s.UptimeSeconds) * time.Second).String())
	switch {
	case s.Trouble != "":
		i := fails(name, plain(errors.New(s.Trouble)), "dtagent status and journalctl -u dtagent say more")
		i.Detail = detail
		return i
	case s.Version != version:
		return wider(name, detail, "this command is version "+version, "systemctl restart dtagent, if it was updated")
	}
	return works(name, detail)
}

// unitDirs are where systemd looks for units.
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

const unit = "dtagent.service"

// service says whether the agent starts with the host.
func (h host) service() Item {
	const name = "service"
	for _, dir := range unitDirs {
		at := filepath.Join(dir, unit)
		if !h.exists(at) {
			continue
		}
		wants, _ := filepath.Glob(h.path("/etc/systemd/system/*.wants/" + unit))
		if len(wants) > 0 {
			return works(name, at+", enabled")
		}
		return absent(name, at+" is not enabled: the agent does not start with the host", "systemctl enable --now dtagent")
	}
	return absent(name, "there is no unit "+unit+": the agent does not start with the host", cmp.Or(h.noSystemd(), "install the package of dtagent, or run `dtagent run` by other means"))
}

func (h host) noSystemd() string {
	if h.exists("/run/systemd/system") {
		return ""
	}
	return "run `dtagent run` by other means: no systemd runs here"
}
