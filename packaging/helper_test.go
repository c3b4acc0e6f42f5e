//go:build linux

package packaging

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// helperMode is the environment's variable that makes this program a helper.
const helperMode = "PACKAGING_HELPER"

// The helpers do not come back but for an error.
var helpers = map[string]func() error{"hold": hold, "service": beService, "limited": beLimited, "look": look}

// hold makes the root of a host in this process's mount namespace, says so, and keeps
// it until its input ends.
func hold() error {
	dir := os.Getenv("HOST_DIR")
	root := filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", root, err)
	}
	if err := unix.Mount("overlay", root+"/usr", "overlay", 0, "lowerdir=/usr,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		return fmt.Errorf("overlay on /usr (needs overlayfs): %w", err)
	}
	bind := map[string]string{"/proc": "/proc", "/sys": "/sys", "/dev": "/dev"}
	if shown := os.Getenv("HOST_SHOWN"); shown != "" {
		bind[shown] = "/dom0"
	}
	for from, to := range bind {
		if err := unix.Mount(from, root+to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", from, err)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
	return nil
}

// beService becomes the program of a unit, as systemd starts it: in the root of a host,
// with the unit's capabilities and no way to others, and with what is to be read-only
// read-only.
func beService() error {
	runtime.LockOSThread()
	root := os.Getenv("HOST_ROOT")
	ns, err := os.Open(os.Getenv("HOST_NS"))
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	ns.Close()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := protect(root, strings.Fields(os.Getenv("HOST_WRITABLE"))); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if os.Getenv("HOST_MEMLOCK") == "infinity" { // where that is forbidden to this test, what is there has to do
		_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	}
	if err := limit(strings.Fields(os.Getenv("HOST_CAPABILITIES"))); err != nil {
		return err
	}
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "WATCHDOG_USEC=") {
			env = append(env, v)
		}
	}
	args := strings.Split(os.Getenv("HOST_EXEC"), " ")
	return fmt.Errorf("%s: %w", args[0], unix.Exec(args[0], args, env))
}

// limit leaves the next program that this thread executes the capabilities of these
// names, and no way to others.
func limit(names []string) error {
	keep := map[uintptr]bool{}
	for _, name := range names {
		c, ok := capabilities[name]
		if !ok {
			return fmt.Errorf("no number of %s is known", name)
		}
		keep[c] = true
	}
	for c := uintptr(0); c < 64; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // the last that this kernel has was before
		}
		if !keep[c] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// protect does what ProtectSystem=strict, ReadWritePaths=, ProtectKernelTunables= and
// PrivateTmp= do.
func protect(root string, writable []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, p := range writable {
		if err := unix.Mount(root+p, root+p, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", p, err)
		}
	}
	readOnly := func(path string, on bool) error {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if !on {
			attr = &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
		}
		if err := unix.MountSetattr(-1, root+path, unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("read-only %s %v (needs Linux 5.12): %w", path, on, err)
		}
		return nil
	}
	if err := readOnly("", true); err != nil {
		return err
	}
	for _, p := range append(writable, "/proc", "/dev") {
		if err := readOnly(p, false); err != nil {
			return err
		}
	}
	if err := unix.Mount(root+"/proc/sys", root+"/proc/sys", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := readOnly("/proc/sys", true); err != nil {
		return err
	}
	return unix.Mount("tmpfs", root+"/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
}

// capabilities are the numbers of those that the units name (linux/capability.h).
var capabilities = map[string]uintptr{
	"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"CAP_NET_ADMIN":       unix.CAP_NET_ADMIN,
	"CAP_SYS_PTRACE":      unix.CAP_SYS_PTRACE,
	"CAP_SYS_ADMIN":       unix.CAP_SYS_ADMIN,
	"CAP_PERFMON":         unix.CAP_PERFMON,
	"CAP_BPF":             unix.CAP_BPF,
}

// beLimited becomes this program again, as "look", with the capabilities that are named.
func beLimited() error {
	runtime.LockOSThread()
	if err := limit(strings.Fields(os.Getenv("HOST_CAPABILITIES"))); err != nil {
		return err
	}
	os.Setenv(helperMode, "look")
	return unix.Exec("/proc/self/exe", []string{"look"}, os.Environ())
}

// look prints which of the things that the agent does, and that need a capability
// beside those of eBPF, are allowed.
func look() error {
	pid := func(name string) string { return "/proc/" + os.Getenv(name) }
	_, exe := os.Readlink(pid("LOOK_ROOTS") + "/exe")
	_, fds := os.ReadDir(pid("LOOK_NOBODYS") + "/fd")
	events := procEvents()
	fmt.Println(exe == nil, fds == nil, events == nil)
	os.Exit(0)
	return nil
}

// procEvents subscribes to the kernel's proc connector.
func procEvents() error {
	s, err := nl.Subscribe(unix.NETLINK_CONNECTOR, netlink.CN_IDX_PROC)
	if err != nil {
		return err
	}
	s.Close()
	return nil
}
