package event

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestTable(t *testing.T) {
	names, children := map[string]Component{}, map[string]Component{}
	for _, c := range AllComponents.All() {
		d := c.Describe()
		qt.Assert(t, qt.Not(qt.Equals(d.Name, "")), qt.Commentf("component %d has no row", c))
		qt.Check(t, qt.Equals(names[d.Name], NoComponent), qt.Commentf("%s twice", d.Name))
		names[d.Name] = c
		qt.Check(t, qt.Not(qt.Equals(d.Is, "")), qt.Commentf("%s", c))
		qt.Check(t, qt.Equals(d.Name, c.String()))
		got, err := ParseComponent(d.Name)
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, c))
		// What gives spans watches something, what gives none lacks something and
		// watches nothing.
		qt.Check(t, qt.Equals(d.Spans != "", len(d.Programs) > 0), qt.Commentf("%s", c))
		qt.Check(t, qt.Equals(d.Spans == "", c.Lacks() != ""), qt.Commentf("%s", c))
		if d.Spans == "" {
			qt.Check(t, qt.IsTrue(c.Costly()), qt.Commentf("%s would be a default that does nothing", c))
		}
		seen := map[string]bool{}
		for _, p := range d.Programs {
			qt.Check(t, qt.IsFalse(seen[p.Name]), qt.Commentf("%s: %s twice", c, p.Name))
			seen[p.Name] = true
			qt.Check(t, qt.IsTrue(p.Of.Exists()), qt.Commentf("%s: %s is nobody's", c, p.Name))
			qt.Check(t, qt.Not(qt.Equals(p.Watch, 0)), qt.Commentf("%s: %s", c, p.Name))
			qt.Check(t, qt.IsFalse(strings.Contains(p.Name, "/")), qt.Commentf("%s: %s", c, p.Name))
			if p.Of != c { // watched for its children only, which forkexecd makes for those that ask
				if p.Name != "forkexecd" || p.Watch == WatchProcesses {
					qt.Check(t, qt.Equals(p.Watch, WatchProcesses), qt.Commentf("%s: %s", c, p.Name))
					qt.Check(t, qt.Not(qt.HasLen(d.Children, 0)), qt.Commentf("%s", c))
				} else {
					qt.Check(t, qt.Equals(p.Watch, WatchStreams|WatchProcesses), qt.Commentf("%s: %s", c, p.Name))
				}
				own := slices.ContainsFunc(p.Of.Describe().Programs, func(o Program) bool { return o.Name == p.Name && o.Of == p.Of })
				qt.Check(t, qt.IsTrue(own), qt.Commentf("%s: %s is no program of %s", c, p.Name, p.Of))
			}
		}
		for _, name := range d.Children {
			qt.Check(t, qt.Equals(children[name], NoComponent), qt.Commentf("%s is two components", name))
			children[name] = c
			if !strings.Contains(name, "/") {
				qt.Check(t, qt.Equals(ComponentOf(name), c))
			}
		}
	}
	qt.Check(t, qt.Equals(ComponentOf("ls"), NoComponent))
}

// A program is the same component for all that need it watched.
func TestProgramsHaveOneComponent(t *testing.T) {
	of := map[string]Component{}
	for _, c := range AllComponents.All() {
		for _, p := range c.Describe().Programs {
			if is, ok := of[p.Name]; ok {
				qt.Check(t, qt.Equals(is, p.Of), qt.Commentf("%s", p.Name))
			}
			of[p.Name] = p.Of
		}
	}
}

// The number fits in what a set of components and a record of the kernel have for it.
func TestComponentsFit(t *testing.T) {
	qt.Check(t, qt.IsTrue(numComponents <= 64))
	qt.Check(t, qt.HasLen(AllComponents.All(), int(numComponents)-1))
	qt.Check(t, qt.IsFalse(numComponents.Exists()))
	qt.Check(t, qt.IsFalse(NoComponent.Exists()))
	qt.Check(t, qt.Equals(numComponents.Describe().Name, ""))
	qt.Check(t, qt.Equals(Component(200).String(), "component(200)"))
	qt.Check(t, qt.Equals(NoComponent.String(), "none"))
}

func TestStoredAndDefault(t *testing.T) {
	var stored, costly Components
	for _, c := range AllComponents.All() {
		if c.Stored() {
			stored |= Of(c)
		}
		if c.Costly() {
			costly |= Of(c)
		}
	}
	qt.Check(t, qt.Equals(stored.String(), "xapi,xenopsd,xapi-clusterd,smapi")) // constants.ml of xen-api
	qt.Check(t, qt.Equals(DefaultComponents()|costly, AllComponents))
	qt.Check(t, qt.Equals(DefaultComponents()&costly, 0))
	qt.Check(t, qt.IsTrue(DefaultComponents()&stored == stored))
	_, err := ParseComponent("xapi,xenopsd")
	qt.Check(t, qt.ErrorMatches(err, `no component "xapi,xenopsd"; there are xapi, xenopsd, .*tapdisk`))
	_, err = ParseComponent("none")
	qt.Check(t, qt.IsNotNil(err))
}

func TestWords(t *testing.T) {
	qt.Check(t, qt.DeepEquals(WatchAll.Words(), []string{"streams", "logs", "processes"}))
	qt.Check(t, qt.DeepEquals(WatchRequests.Words(), []string{"disk requests"}))
	qt.Check(t, qt.DeepEquals(WatchLogs.Words(), []string{"logs"}))
}
