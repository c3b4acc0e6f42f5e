package check

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/target"
)

// Target is a process of the toolstack.
type Target struct {
	Item
	TGID        uint32 `json:"tgid"`
	Component   string `json:"component"`
	Program     string `json:"program,omitempty"`
	Version     string `json:"version,omitempty"`      // "": not known
	VersionFrom string `json:"version_from,omitempty"` // who says so
	BuildID     string `json:"build_id,omitempty"`     // of its executable
	Outdated    bool   `json:"outdated,omitempty"`     // its executable was replaced or removed since it started
}

// core are the components without which little is left, and what is left out then.
var core = []struct {
	component event.Component
	means     string
}{
	{event.Xapi, "no API calls reach this host, so nothing is traced"},
	{event.Xenopsd, "what is done to VMs has no operations and atoms below the calls"},
	{event.MessageSwitch, "daemons cannot ask each other: no RPC spans, and xapi cannot reach xenopsd"},
}

// targets are the processes of the toolstack that run. versions is told what to
// find out about.
func (h host) targets(ctx context.Context, proc string, v *versions) ([]Target, map[event.Component]bool, error) {
	running, err := target.NewProc(proc).Running()
	if err != nil {
		return nil, nil, err
	}
	var out []Target
	found := map[event.Component]bool{}
	for _, c := range event.AllComponents.All() {
		for _, p := range running[c] {
			found[c] = true
			out = append(out, h.target(ctx, proc, c, p, v))
		}
	}
	slices.SortStableFunc(out, func(a, b Target) int { return cmp.Compare(a.TGID, b.TGID) })
	return out, found, nil
}

func (h host) target(ctx context.Context, proc string, c event.Component, p target.Process, v *versions) Target {
	t := Target{TGID: p.TGID, Component: c.String(), Program: p.Program}
	dir := filepath.Join(cmp.Or(proc, "/proc"), strconv.FormatUint(uint64(p.TGID), 10))
	name := fmt.Sprintf("%s, pid %d", p.Program, p.TGID)
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	exe, t.Outdated = strings.CutSuffix(exe, " (deleted)")
	e := v.of(ctx, p.Program, filepath.Join(dir, "exe"), exe, t.Outdated)
	t.Version, t.VersionFrom, t.BuildID = e.version, e.from, e.buildID

	detail := c.String() + ", version " + cmp.Or(t.Version, "not known")
	if t.VersionFrom != "" {
		detail += " (" + t.VersionFrom + ")"
	}
	_, fdErr := os.ReadDir(filepath.Join(dir, "fd"))
	switch why := cmp.Or(fdErr, err); {
	case c.Lacks() != "":
		t.Item = absent(name, "not traced: it needs "+c.Lacks()+", which this version does not see", "nothing")
	case why != nil:
		t.Item = unknown(name, plain(why), "run as root, in the pid name space of the host")
	case t.Outdated:
		t.Item = wider(name, detail, "it still runs what it was started from, which is not on disk any more: "+exe+" was updated or removed", "restart it at a good time (xe-toolstack-restart); until then its version is the old one")
	default:
		t.Item = works(name, detail)
	}
	t.Detail = detail
	return t
}

// beside are programs that take part in what is traced and are no targets, each with
// what it does there.
var beside = []struct{ program, does string }{
	{"stunnel", "TLS to and from xapi: its plain side is seen at xapi"},
	{"tapdisk", "disks of guests"},
}

// maxScanned bounds the processes that are looked at for them.
const maxScanned = 1 << 16

// others says which of them run, and in which version.
func (h host) others(ctx context.Context, proc string, v *versions) []Item {
	root := cmp.Or(proc, "/proc")
	type found struct {
		n   int
		pid string // of one
		exe string
	}
	all := map[string]*found{}
	dir, err := os.Open(root)
	if err != nil {
		return nil // said already
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxScanned)
	for _, name := range names {
		if _, err := strconv.ParseUint(name, 10, 32); err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join(root, name, "exe"))
		if err != nil {
			continue
		}
		program := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
		f := all[program]
		if f == nil {
			f = &found{pid: name, exe: exe}
			all[program] = f
		}
		f.n++
	}
	var out []Item
	for _, b := range beside {
		f := all[b.program]
		if f == nil {
			continue
		}
		path, outdated := strings.CutSuffix(f.exe, " (deleted)")
		e := v.of(ctx, b.program, filepath.Join(root, f.pid, "exe"), path, outdated)
		detail := fmt.Sprintf("%d run, version %s", f.n, cmp.Or(e.version, "not known"))
		if e.from != "" {
			detail += " (" + e.from + ")"
		}
		out = append(out, works(b.program, detail+"; "+b.does))
	}
	return out
}

// missing says which components have no process, and what that means.
func missing(found map[event.Component]bool) []Item {
	if len(found) == 0 {
		return []Item{absent("toolstack", "no daemon of it runs", "nothing, if it is to start later: its daemons are found when they start; else see systemctl status xapi, or run dtagent in dom0")}
	}
	var out []Item
	for _, c := range core {
		if !found[c.component] {
			out = append(out, fails(c.component.String(), "it does not run: "+c.means, "systemctl status "+unitOf(c.component)+"; xe-toolstack-restart starts all. It is found when it starts"))
		}
	}
	for _, c := range event.DefaultComponents().All() {
		d := c.Describe()
		own := slices.ContainsFunc(d.Programs, func(p event.Program) bool { return p.Of == c })
		if own && !found[c] && c != event.Xapi && c != event.Xenopsd && c != event.SMAPI { // SMAPI is scripts
			out = append(out, absent(c.String(), "it does not run: none of its spans ("+d.Spans+")", "nothing, if this host has none; it is found when it starts"))
		}
	}
	return out
}

func unitOf(c event.Component) string {
	if c == event.Xenopsd {
		return "xenopsd-xc"
	}
	return c.String()
}

// scripts say what there is of SM, whose scripts are no daemons.
func (h host) scripts(ctx context.Context, further string, v *versions) []Item {
	dirs := slices.Clone(target.SMDirs)
	if further != "" {
		dirs = append(dirs, further)
	}
	var out []Item
	for _, dir := range dirs {
		entries, err := os.ReadDir(h.path(dir))
		n := 0
		for _, e := range entries {
			if target.IsSM([]byte(filepath.Join(dir, e.Name())), dirs) {
				n++
			}
		}
		if err != nil || n == 0 {
			why := "there are none"
			if err != nil && !os.IsNotExist(err) {
				why = plain(err)
			}
			out = append(out, absent("SM scripts", why+" in "+dir, "nothing, if storage is not by SMAPIv1; give the agent --sm-dir for another directory"))
			continue
		}
		e := v.file(ctx, dir)
		detail := fmt.Sprintf("%d in %s, version %s", n, dir, cmp.Or(e.version, "not known"))
		if e.from != "" {
			detail += " (" + e.from + ")"
		}
		out = append(out, works("SM scripts", detail))
	}
	return out
}

// xapiForms says what of xapi's version matters: where it tells which trace a piece
// of work belongs to (version drift in the field). All forms are understood.
func xapiForms(version string) string {
	switch {
	case version == "":
		return ""
	case atLeast(version, 26, 8):
		return "its traces are told in debug_info and in log lines"
	case atLeast(version, 25, 8):
		return "its traces are told in debug_info, not in log lines (26.8)"
	case atLeast(version, 23, 14):
		return "its traces are told in debug_info as a bare traceparent, not in log lines (26.8)"
	}
	return "it has no Observers of its own (23.14)"
}
