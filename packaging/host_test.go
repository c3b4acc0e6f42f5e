//go:build linux

package packaging

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// host is a root of its own in which packages are installed: this machine's /usr below
// an overlay, nothing else of it. Its systemctl says what it is told to this test,
// which does it.
type host struct {
	t     testing.TB
	dir   string // of all that is its own
	root  string // as its own mount namespace has it
	ns    string // that namespace's root, as /proc shows it
	proc  int    // the process that holds it
	upper string // what was written below /usr

	mu    sync.Mutex
	calls []string                // of systemctl
	do    func(verb string) error // what it is told of the service
}

// systemctl says its words to the test, which does what changes the service before it
// returns. What needs no running systemd the real one does.
const systemctl = `#!/bin/sh
words=
for w; do
	case $w in
	--root=*) exec /systemd/systemctl "$@" ;;
	-*) ;;
	*) words="$words $w" ;;
	esac
done
words=${words# }
case $words in
is-enabled*) exec /systemd/systemctl --root=/ $words ;;
esac
echo "$words" >/systemd/ask
read -r answer </systemd/answer
exit "$answer"
`

// newHost makes one. shown is a directory that it has as /dom0.
func newHost(t testing.TB, shown string) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), do: func(string) error { return nil }}
	h.root, h.upper = filepath.Join(h.dir, "root"), filepath.Join(h.dir, "upper")
	for _, d := range []string{
		"upper/bin", "upper/sbin", "work", "root/usr", "root/proc", "root/sys", "root/dev", "root/tmp", "root/etc/systemd/system", "root/run/systemd/system", "root/dom0", "root/systemd", "root/var/tmp",
		"root/var/log", "root/var/lib/dpkg/info", "root/var/lib/dpkg/updates", "root/var/lib/dpkg/triggers",
	} {
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Join(h.dir, d), 0o755)))
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if to, err := os.Readlink("/" + d); err == nil {
			qt.Assert(t, qt.IsNil(os.Symlink(to, filepath.Join(h.root, d))))
		} else if !os.IsNotExist(err) {
			t.Skipf("needs a machine whose /%s is a link into /usr: %v", d, err)
		}
	}
	for name, text := range map[string]string{
		"root/etc/passwd":          "root:x:0:0:root:/:/bin/sh\n",
		"root/etc/group":           "root:x:0:\n",
		"root/var/lib/dpkg/status": "Package: init-system-helpers\nStatus: install ok installed\nVersion: 1.65\nArchitecture: all\nMaintainer: none\nDescription: none\n",
	} {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644)))
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(h.upper, "bin/systemctl"), []byte(systemctl), 0o755)))
	// Images of containers have one that forbids to start services.
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(h.upper, "sbin/policy-rc.d"), []byte("#!/bin/sh\nexit 0\n"), 0o755)))
	if real, err := exec.LookPath("systemctl"); err == nil {
		copyFile(t, real, filepath.Join(h.root, "systemd/systemctl"), 0o755)
	}
	h.hold(shown)
	h.answer()
	return h
}

// hold starts the process that holds the namespace.
func (h *host) hold(shown string) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperMode+"=hold", "HOST_DIR="+h.dir, "HOST_SHOWN="+shown)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	qt.Assert(h.t, qt.IsNil(err))
	out, err := cmd.StdoutPipe()
	qt.Assert(h.t, qt.IsNil(err))
	qt.Assert(h.t, qt.IsNil(cmd.Start()))
	h.t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	ready, _ := bufio.NewReader(out).ReadString('\n')
	if ready != "ready\n" {
		in.Close()
		_ = cmd.Wait()
		h.t.Fatalf("no root to install into: %s", stderr.String())
	}
	h.proc = cmd.Process.Pid
	h.ns = fmt.Sprintf("/proc/%d/root", h.proc)
}

// inside is the path of a file of the host.
func (h *host) inside(path string) string { return filepath.Join(h.ns+h.root, path) }

// answer does what systemctl is told, until the test ends.
func (h *host) answer() {
	ask, answer := filepath.Join(h.root, "systemd/ask"), filepath.Join(h.root, "systemd/answer")
	qt.Assert(h.t, qt.IsNil(unix.Mkfifo(ask, 0o600)))
	qt.Assert(h.t, qt.IsNil(unix.Mkfifo(answer, 0o600)))
	// Open for both directions, so that neither end waits for the other to be there.
	in, err := os.OpenFile(ask, os.O_RDWR, 0)
	qt.Assert(h.t, qt.IsNil(err))
	out, err := os.OpenFile(answer, os.O_RDWR, 0)
	qt.Assert(h.t, qt.IsNil(err))
	var wg sync.WaitGroup
	h.t.Cleanup(func() {
		in.Close()
		wg.Wait()
		out.Close()
	})
	wg.Go(func() {
		for sc := bufio.NewScanner(in); sc.Scan(); {
			h.mu.Lock()
			h.calls = append(h.calls, sc.Text())
			do := h.do
			h.mu.Unlock()
			code := "0\n"
			if verb, ok := strings.CutSuffix(sc.Text(), " dtagent.service"); ok {
				if err := do(verb); err != nil {
					h.t.Errorf("systemctl %s: %v", sc.Text(), err)
					code = "1\n"
				}
			}
			if _, err := io.WriteString(out, code); err != nil {
				return
			}
		}
	})
}

// manage has m do what systemctl is told from now on.
func (h *host) manage(m *manager) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.do = m.do
}

// said returns what systemctl was told since the last call of said.
func (h *host) said() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.calls = nil }()
	return h.calls
}

// run runs a command of the host, in it.
func (h *host) run(command string, args ...string) (string, error) {
	return h.runIn(h.ns+h.root, command, args...)
}

func (h *host) runIn(root, command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// rpm runs rpm on the host's root; dpkg runs dpkg in it.
func (h *host) rpm(args ...string) error {
	_, err := h.runIn(h.ns, "/usr/bin/rpm", append([]string{"--root", h.root, "--define", "_dbpath /var/lib/rpm"}, args...)...)
	return err
}

func (h *host) dpkg(args ...string) error {
	_, err := h.run("/usr/bin/dpkg", args...)
	return err
}

// install installs a package or upgrades to it.
func (h *host) install(k Kind, path string) error {
	if k.Format == "rpm" {
		return h.rpm("-U", path)
	}
	to := filepath.Join(h.root, "tmp", filepath.Base(path))
	copyFile(h.t, path, to, 0o644)
	defer os.Remove(to)
	return h.dpkg("--install", "/tmp/"+filepath.Base(path))
}

// remove takes the package off, and what it would leave for a later installation.
func (h *host) remove(k Kind) error {
	if k.Format == "rpm" {
		return h.rpm("-e", "dtagent")
	}
	if err := h.dpkg("--remove", "dtagent"); err != nil {
		return err
	}
	return h.dpkg("--purge", "dtagent")
}

// files lists what is in the root, and what was written below /usr; not what belongs
// to the package manager or to this test.
func (h *host) files() []string {
	var all []string
	for _, top := range []struct{ dir, as string }{{h.root, "/"}, {h.upper, "/usr"}} {
		qt.Assert(h.t, qt.IsNil(filepath.WalkDir(top.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(top.dir, path)
			if err != nil {
				return err
			}
			name := filepath.Join(top.as, rel)
			if top.as == "/usr" && d.IsDir() && !strings.Contains(name, "dtagent") {
				return nil // the overlay makes copies of directories
			}
			for _, other := range []string{"/proc", "/sys", "/dev", "/dom0", "/usr/bin/systemctl", "/usr/sbin/policy-rc.d", "/systemd", "/var/lib/dpkg", "/var/lib/rpm", "/var/log/dpkg.log", "/tmp"} {
				if name == other {
					if d.IsDir() {
						return fs.SkipDir
					}
					return nil
				}
			}
			if top.as == "/" && name == "/usr" {
				return fs.SkipDir
			}
			all = append(all, name)
			return nil
		})))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
