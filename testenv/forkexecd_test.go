//go:build linux

package testenv_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/truth"
)

// TestForkexecd looks at who asks forkexecd for a program, and who starts it: the
// ground truth says the one, ptrace both.
func TestForkexecd(t *testing.T) {
	d := start(t, testenv.Options{Forkexecd: true})
	ctx := timeout(t, 60*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	calls := watch(t, d, []string{"xapi", "xenopsd-xc", "forkexecd"}, func() {
		call(t, ctx, c, true, "VM.start", session, d.VMs()[0].Ref, false, false)
	})
	l, err := d.Truth()
	qt.Assert(t, qt.IsNil(err))
	maker := clones(calls)
	for _, name := range []string{"xenguest", "LVMSR vdi_attach", "LVMSR vdi_activate"} {
		p := l.Find(truth.Process, name)
		qt.Assert(t, qt.HasLen(p, 1))
		pid := p[0].TGID
		qt.Check(t, qt.Equals(maker[maker[maker[pid]]], uint32(d.PID("forkexecd"))), qt.Commentf("%s", name))
		parent, ok := l.ByID(p[0].Parent)
		qt.Assert(t, qt.IsTrue(ok))
		var programs []string
		var asked bool
		program, operation, _ := strings.Cut(name, " ")
		for _, c := range calls {
			switch {
			case c.Name == "execve" && c.TID == pid && c.Return == 0 && len(c.Args) > 0:
				b, _, _ := c.Args[0].Bytes()
				programs = append(programs, filepath.Base(string(b)))
			case c.Name == "write" && c.TID == parent.TID && len(moved(c)) > 12 && bytes.HasPrefix(moved(c)[12:], []byte(`["Setup",`)):
				asked = asked || bytes.Contains(moved(c), []byte(program)) && bytes.Contains(moved(c), []byte(operation))
			}
		}
		qt.Check(t, qt.DeepEquals(programs, []string{program}))
		qt.Check(t, qt.IsTrue(asked), qt.Commentf("%s is not asked for by the thread of %s", name, parent.Name))
	}
	sr := l.Find(truth.Process, "LVMSR vdi_attach")[0]
	var below []string
	for _, e := range l.Children(sr.ID) {
		below = append(below, e.Name)
	}
	qt.Check(t, qt.SliceContains(below, "tap-ctl"))
	qt.Check(t, qt.SliceContains(below, "VDI.get_by_uuid"))
}
