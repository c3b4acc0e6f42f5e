//go:build linux

package packaging

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// The agent works with the capabilities of its unit: TestInstallKernel runs it with
// these alone. This test shows that it needs each of them.
func TestCapabilitiesNeededKernel(t *testing.T) {
	needRoot(t)
	all := words(unitLines(t, "dtagent.service"), "CapabilityBoundingSet")
	qt.Assert(t, qt.HasLen(all, len(slices.Compact(slices.Sorted(slices.Values(all))))))
	tested := map[string]bool{}

	t.Run("eBPF", func(t *testing.T) {
		needCommand(t, "rpm", "rpm")
		h := newHost(t, "")
		k := Kinds[1]
		qt.Assert(t, qt.IsNil(h.install(k, pack(t, k, first))))
		for _, c := range []string{"CAP_BPF", "CAP_PERFMON"} {
			tested[c] = true
			s := &service{h: h, without: []string{c}}
			err := s.start()
			qt.Check(t, qt.IsNotNil(err), qt.Commentf("it starts without %s", c))
			if err == nil {
				qt.Check(t, qt.IsNil(s.stop()))
				continue
			}
			qt.Check(t, qt.StringContains(s.log.String(), "eBPF cannot be used here"), qt.Commentf("%s", c))
		}
	})

	// A process of another user, and one of root that may more than the agent.
	nobodys := exec.Command("/bin/sleep", "1000")
	nobodys.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	qt.Assert(t, qt.IsNil(nobodys.Start()))
	defer func() { _ = nobodys.Process.Kill(); _ = nobodys.Wait() }()
	allowed := func(keep []string) (exe, fds, events bool) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), helperMode+"=limited", "HOST_CAPABILITIES="+strings.Join(keep, " "),
			"LOOK_ROOTS="+strconv.Itoa(os.Getpid()), "LOOK_NOBODYS="+strconv.Itoa(nobodys.Process.Pid))
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		qt.Assert(t, qt.IsNil(err), qt.Commentf("%s", &errs))
		w := strings.Fields(string(out))
		qt.Assert(t, qt.HasLen(w, 3))
		return w[0] == "true", w[1] == "true", w[2] == "true"
	}
	without := func(c string) []string {
		tested[c] = true
		return slices.DeleteFunc(slices.Clone(all), func(o string) bool { return o == c })
	}
	exe, fds, events := allowed(all)
	qt.Assert(t, qt.IsTrue(exe && fds && events))
	exe, _, _ = allowed(without("CAP_SYS_PTRACE"))
	qt.Check(t, qt.IsFalse(exe)) // the program of a process
	_, fds, _ = allowed(without("CAP_DAC_READ_SEARCH"))
	qt.Check(t, qt.IsFalse(fds)) // the sockets of another user's process
	_, _, events = allowed(without("CAP_NET_ADMIN"))
	qt.Check(t, qt.Equals(events, kernelSince(t, 6, 6))) // what is executed, at once: since Linux 6.6 everybody may know
	for _, c := range all {
		qt.Check(t, qt.IsTrue(tested[c]), qt.Commentf("nothing shows that %s is needed", c))
	}
}

func kernelSince(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	qt.Assert(t, qt.IsNil(unix.Uname(&u)))
	w := strings.FieldsFunc(unix.ByteSliceToString(u.Release[:]), func(r rune) bool { return r < '0' || r > '9' })
	qt.Assert(t, qt.IsTrue(len(w) >= 2))
	a, err1 := strconv.Atoi(w[0])
	b, err2 := strconv.Atoi(w[1])
	qt.Assert(t, qt.IsTrue(err1 == nil && err2 == nil))
	return a > major || a == major && b >= minor
}
