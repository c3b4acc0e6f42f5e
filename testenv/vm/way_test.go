package vm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseWays(t *testing.T) {
	out := "\x16=== RUN   TestWaysKernel/kprobe\n" +
		`    way_kernel_test.go:199: way hook="sched:sched_switch" way="tp_btf" result="works" why=""` + "\n" +
		"way hook=\"no line of a log\"\n" +
		`    way_kernel_test.go:199: way hook="syscalls:sys_enter_read" way="kprobe" result="refused" why="symbol \"x\": a=b\nno"` + "\r\n"
	ways, bad := parseWays(out)
	qt.Check(t, qt.HasLen(bad, 0))
	qt.Check(t, qt.DeepEquals(ways, []HookWay{
		{"sched:sched_switch", "tp_btf", works, ""},
		{"syscalls:sys_enter_read", "kprobe", refused, "symbol \"x\": a=b\nno"},
	}))
	ways, bad = parseWays("PASS\n")
	qt.Check(t, qt.HasLen(ways, 0))
	qt.Check(t, qt.HasLen(bad, 0))
}

func TestParseWaysBad(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{`hook="a:b"`, "3 of its values are missing"},
		{`hook="a:b" way="kprobe" result="perhaps" why=""`, `"perhaps" is no result`},
		{`hook="" way="kprobe" result="works" why=""`, "names nothing"},
		{`hook="a:b" way="kprobe" way="kprobe" result="works" why=""`, `"way" is no pair that is known, or comes twice`},
		{`hook="a:b" way="kprobe" result="works" why="cut`, "value of why: "},
		{`hook="a:b" way=kprobe result="works" why=""`, "value of way: "},
		{`hook="a:b" way="kprobe" result="works" why="" more="x"`, `"more" is no pair`},
	} {
		ways, bad := parseWays("    x_test.go:1: way " + c.line + "\n")
		qt.Check(t, qt.HasLen(ways, 0))
		qt.Assert(t, qt.HasLen(bad, 1), qt.Commentf("%s", c.line))
		qt.Check(t, qt.StringContains(bad[0], c.want))
	}
}

func FuzzParseWays(f *testing.F) {
	f.Add(`x_test.go:1: way hook="a:b" way="kprobe" result="works" why="\u0041"`)
	f.Add(`: way hook=`)
	f.Fuzz(func(t *testing.T, s string) {
		ways, bad := parseWays(s)
		if len(ways)+len(bad) > strings.Count(s, "\n")+1 {
			t.Errorf("%d lines", len(ways)+len(bad))
		}
	})
}

// tell writes a line as the test in the guest does.
func tell(hook, way, result, why string) string {
	return fmt.Sprintf("    way_kernel_test.go:199: way hook=%q way=%q result=%q why=%q\n", hook, way, result, why)
}

func TestWayTable(t *testing.T) {
	result := func(release string, lines ...string) *Result {
		ways, bad := parseWays(strings.Join(lines, ""))
		qt.Assert(t, qt.HasLen(bad, 0))
		return &Result{Kernel: &Kernel{}, Release: release, Ways: ways}
	}
	table := newWayTable([]*Result{
		result("5.10",
			tell("sched:sched_switch", "tracepoint", works, ""), tell("syscalls:sys_enter_read", "tracepoint", works, ""), tell("syscalls:sys_enter_write", "tracepoint", works, ""),
			tell("sched:sched_switch", "raw tracepoint", works, ""),
			tell("syscalls:sys_enter_read", "kprobe", refused, "attach __x64_sys_read:  no 100% luck"), tell("syscalls:sys_enter_write", "kprobe", refused, "attach __x64_sys_write: no 100% luck")),
		result("6.1",
			tell("sched:sched_switch", "tracepoint", works, ""), tell("syscalls:sys_enter_read", "tracepoint", works, ""), tell("syscalls:sys_enter_write", "tracepoint", works, ""),
			tell("syscalls:sys_exit_close_range", "tracepoint", absent, "file does not exist"),
			tell("syscalls:sys_enter_read", "kprobe", works, ""), tell("syscalls:sys_enter_write", "kprobe", works, "")),
	})
	qt.Check(t, qt.Equals(table.markdown(), `| hook | 5.10 | 6.1 |
|---|---|---|
| `+"`sched:sched_switch`"+` | tracepoint, raw tracepoint | tracepoint |
| `+"`syscalls:sys_enter_`"+`: read, write | tracepoint, kprobe refused | tracepoint, kprobe |
| `+"`syscalls:sys_exit_close_range`"+` | - | tracepoint absent |

5.10, kprobe refused: `+"`syscalls:sys_enter_`"+`: read, write: attach …: no 100% luck

6.1, tracepoint absent: `+"`syscalls:sys_exit_close_range`"+`: file does not exist
`))
}
