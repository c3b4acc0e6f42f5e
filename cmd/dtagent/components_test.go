package main

import (
	"cmp"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/target"
)

// TestComponentsPage compares the documentation with the table in the code;
// -update writes it.
func TestComponentsPage(t *testing.T) {
	const name = "../../docs/components.md"
	page := componentsPage(componentRows(nil))
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(name, []byte(page), 0o644)))
	}
	got, err := os.ReadFile(name)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(got), page), qt.Commentf("go test ./cmd/dtagent -run %s -update writes it", t.Name()))
}

func TestPrintComponents(t *testing.T) {
	rows := componentRows(map[event.Component][]target.Process{
		event.Xapi: {{TGID: 100, Program: "xapi"}, {TGID: 101, Program: "xapi"}},
		event.QEMU: {{TGID: 1, Program: "qemu"}, {TGID: 2, Program: "qemu"}, {TGID: 3, Program: "qemu"}, {TGID: 4, Program: "qemu"}, {TGID: 5, Program: "qemu"}},
	})
	var b strings.Builder
	qt.Assert(t, qt.IsNil(printComponents(&b, rows)))
	table, rest, ok := strings.Cut(b.String(), "\n\n")
	qt.Assert(t, qt.IsTrue(ok))
	lines := strings.Split(table, "\n")
	qt.Assert(t, qt.HasLen(lines, 1+len(event.AllComponents.All())))
	column := strings.Index(lines[0], "RUNNING NOW")
	for i, c := range event.AllComponents.All() {
		line := lines[i+1]
		qt.Check(t, qt.Equals(strings.Fields(line)[0], c.String()))
		qt.Check(t, qt.Equals(strings.Fields(line)[1] == "yes", c.Stored()))
		qt.Check(t, qt.Equals(strings.Fields(line)[2] == "no", c.Costly()))
		want := map[event.Component]string{event.Xapi: "xapi 100, xapi 101", event.QEMU: "qemu 1, qemu 2, qemu 3, qemu 4, and 1 more"}[c]
		qt.Check(t, qt.Equals(line[column:], cmp.Or(want, "-")))
	}
	qt.Check(t, qt.StringContains(rest, "xenguest: the domain builder"))
	qt.Check(t, qt.StringContains(rest, "processes of xenopsd-xc, xenopsd, xenopsd-simulator, forkexecd"))
}

func TestCheckComponents(t *testing.T) {
	code, out, stderr := dtagent("check", "--components", "--json")
	qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s", stderr))
	var got struct{ Components []componentRow }
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &got)))
	qt.Assert(t, qt.HasLen(got.Components, len(event.AllComponents.All())))
	for _, r := range got.Components {
		c, err := event.ParseComponent(r.Name)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(r.Default, !c.Costly()))
	}
	code, out, _ = dtagent("check", "--components")
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(out, "COMPONENT")))
}
