//go:build linux

// Package launch puts a dom0 together: the mount namespace, the files and the
// processes.
package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// programs are the paths of the dom0's programs. All are the same file.
var programs = []string{
	"/opt/xensource/bin/xapi",
	"/usr/sbin/xenopsd-xc",
	"/usr/sbin/message-switch",
	"/usr/sbin/squeezed",
	"/usr/sbin/xcp-networkd",
	"/usr/sbin/xcp-rrdd",
	"/usr/sbin/rsyslogd",
	"/usr/bin/stunnel",
	"/usr/libexec/xapi/vfork_helper",
	"/usr/sbin/forkexecd",
	"/usr/libexec/xen/bin/xenguest",
	"/opt/xensource/libexec/sm-python3",
	"/usr/bin/python3",
	"/usr/sbin/tap-ctl",
	slowfile.Server, // the one that a real dom0 lacks
}

// smScript is an SM script; its interpreter is one of programs.
const smScript = "/opt/xensource/sm/LVMSR"

// layered are the directories that get a layer of their own, in memory.
var layered = []string{"/etc", "/opt", "/usr", "/var"}

// mount makes the file system of the dom0 in this process's mount namespace, which
// must be private already. dir stays what it is outside.
func mount(binary, dir, host string) error {
	bin, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer bin.Close()
	keep, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer keep.Close()
	upper := filepath.Join(dir, "layers")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", upper, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on %s: %w", upper, err)
	}
	for _, d := range layered {
		if _, err := os.Stat(d); err != nil {
			return fmt.Errorf("needs %s: %w", d, err)
		}
		up, work := filepath.Join(upper, d), filepath.Join(upper, d+".work")
		for _, m := range []string{up, work} {
			if err := os.MkdirAll(m, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount("overlay", d, "overlay", 0, "lowerdir="+d+",upperdir="+up+",workdir="+work); err != nil {
			return fmt.Errorf("overlay on %s (needs overlayfs): %w", d, err)
		}
	}
	if err := devices(upper); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	if real, err := filepath.EvalSymlinks("/var/run"); err != nil || real != "/run" {
		if err := os.MkdirAll("/var/run", 0o755); err != nil {
			return err
		}
	}
	for _, d := range append(layered, "/run") {
		if strings.HasPrefix(dir, d+"/") { // the layer hides it, or would take what is written
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", keep.Fd()), dir, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind %s: %w", dir, err)
			}
		}
	}
	for _, p := range programs {
		if err := bind(fmt.Sprintf("/proc/self/fd/%d", bin.Fd()), p); err != nil {
			return err
		}
	}
	files := map[string]string{
		"/etc/xensource-inventory": "PRODUCT_BRAND='XenServer'\nINSTALLATION_UUID='" + host + "'\nMANAGEMENT_INTERFACE='xenbr0'\n",
		smScript:                   "#!/opt/xensource/libexec/sm-python3\n",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"/var/lib/xcp", "/var/run/message-switch", "/var/run/nonpersistent/xenopsd/classic", "/var/log/dt"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod("/var/lib/xcp", 0o700)
}

// bind makes target, with its directories, and what source is appear there.
func bind(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(target); err == nil && !st.Mode().IsRegular() {
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", target, err)
	}
	return nil
}

// devices makes a /dev of its own, in which /dev/log can be.
func devices(upper string) error {
	old := filepath.Join(upper, "dev")
	if err := os.MkdirAll(old, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/dev", old, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /dev: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /dev: %w", err)
	}
	for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty", "fuse"} {
		if _, err := os.Stat(filepath.Join(old, n)); n == "fuse" && err != nil {
			continue // not every machine has it
		}
		if err := bind(filepath.Join(old, n), filepath.Join("/dev", n)); err != nil {
			return err
		}
	}
	for _, n := range []string{"pts", "shm"} {
		from, to := filepath.Join(old, n), filepath.Join("/dev", n)
		if _, err := os.Stat(from); err != nil {
			continue // a container may lack them
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", to, err)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	return nil
}
