//go:build linux

package bpf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// System calls of 32-bit programs whose numbers are others of 64-bit ones.
const (
	compatRead      = 3   // close
	compatGetpid    = 20  // writev
	compatNanosleep = 162 // sync
)

// The system calls of 32-bit programs are not taken for those that have their
// numbers in 64-bit ones.
func TestCompatKernel(t *testing.T) {
	if v := startVictim(t); true {
		v.start(order{Thread: 3, Do: "compat", N: compatGetpid})
		var r outcome
		if err := v.out.Decode(&r); err != nil {
			t.Skip("needs CONFIG_IA32_EMULATION: ", v.cmd.Wait())
		}
	}
	for _, dispatch := range []bool{false, true} {
		t.Run(fmt.Sprintf("dispatch=%v", dispatch), func(t *testing.T) {
			c := collect(t, openKernel(t, Modern, Options{dispatch: dispatch}))
			for _, p := range allProbes {
				qt.Assert(t, qt.IsNil(c.s.Attach(p)))
			}
			qt.Assert(t, qt.IsNil(c.s.SetWait(threshold)))
			v, peer := c.pair(streamAndLog | WatchProcess | WatchWait)
			in := func(o order) outcome { o.Thread, o.Do = 3, "compat"; return v.do(o) }
			qt.Check(t, qt.Equals(in(order{N: compatGetpid, FD: 3, Data: "x", Count: 1}).Ret, int(v.pid())))
			send(t, peer, "hello")
			qt.Check(t, qt.Equals(in(order{N: compatRead, FD: 3, Count: 100}).Ret, len("hello")))
			out := in(order{N: compatNanosleep, FD: -1, Data: "\x00\x00\x00\x00\x00\x00\x00\x04"}) // 67 ms
			qt.Check(t, qt.Equals(out.Ret, 0))
			v.must(order{Thread: 3, Do: "write", FD: 3, Data: strings.Repeat("r", 300)})
			v.must(order{Thread: 3, Do: "tid"})
			var calls []string
			var waits []TimeRec
			for _, r := range c.all() {
				switch {
				case r.Kind == KindData || r.Kind == KindClose:
					calls = append(calls, r.String())
					qt.Check(t, qt.Equals(r.Data.Bytes, 300))
					qt.Check(t, qt.Equals(r.Data.Calls, 1))
				case r.Kind == KindTime && r.Time.Wait != 0 && r.TID == uint32(out.TID):
					qt.Check(t, qt.Not(qt.Equals(r.Time.NR, compatNanosleep)))
					if r.Time.NR == -1 {
						waits = append(waits, r.Time)
					}
				}
			}
			qt.Check(t, qt.HasLen(calls, 1), qt.Commentf("%s", strings.Join(calls, "\n")))
			if qt.Check(t, qt.HasLen(waits, 1)) {
				qt.Check(t, qt.Equals(event.Spent(waits[0].Wait), event.OtherWait))
				qt.Check(t, qt.IsTrue(waits[0].Last-waits[0].First >= uint64(long)))
			}
			for _, p := range allProbes {
				qt.Assert(t, qt.IsNil(c.s.Detach(p)))
			}
			c.noLosses()
		})
	}
}
