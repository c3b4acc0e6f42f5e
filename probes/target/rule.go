//go:build linux

// Package target finds the processes of the toolstack and says which component
// each is and what of it is watched.
package target

import (
	"bytes"
	"path"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// Everything that can be watched of a daemon.
const everything = bpf.WatchStream | bpf.WatchLog | bpf.WatchProcess

// rule says that one component needs a program watched.
type rule struct {
	wanted  event.Component // the component that an Observer wants
	program string          // base name of the executable
	is      event.Component // the component that the process belongs to
	watch   bpf.Watch
}

// rules are those that follow from the table of components.
var rules = func() (out []rule) {
	for _, c := range event.AllComponents.All() {
		for _, p := range c.Describe().Programs {
			out = append(out, rule{c, p.Name, p.Of, watchOf(p.Watch)})
		}
	}
	return out
}()

// watchOf says to the kernel side what is watched.
func watchOf(w event.Watch) (out bpf.Watch) {
	for _, bit := range []struct {
		table  event.Watch
		kernel bpf.Watch
	}{
		{event.WatchStreams, bpf.WatchStream},
		{event.WatchLogs, bpf.WatchLog},
		{event.WatchProcesses, bpf.WatchProcess},
	} {
		if w&bit.table != 0 {
			out |= bit.kernel
		}
	}
	return out
}

// Plan returns which component a program belongs to and what of it is watched
// when c is wanted; no Watch means that it is no target.
func Plan(c event.Components, program string) (event.Component, bpf.Watch) {
	var (
		is    event.Component
		watch bpf.Watch
	)
	for _, r := range rules {
		if r.program == program && c.Has(r.wanted) {
			is = r.is
			watch |= r.watch
		}
	}
	return is, watch
}

// Watches returns all that may have to be watched when c is wanted.
func Watches(c event.Components) bpf.Watch {
	var watch bpf.Watch
	for _, r := range rules {
		if c.Has(r.wanted) {
			watch |= r.watch
		}
	}
	return watch
}

// programs lists the names of rules, each once.
var programs = func() (names []string) {
	for _, r := range rules {
		if !slices.Contains(names, r.program) {
			names = append(names, r.program)
		}
	}
	return names
}()

// commLen is what the kernel keeps of a name in comm.
const commLen = 15

// programOf returns the name of the rules that a process goes by, "" if none.
// The executable decides; a program that something else runs (an interpreter,
// a loader) is told by its first argument and its comm together.
func programOf(comm, exe, arg0 string) string {
	for _, p := range programs {
		if exe == p || comm == p[:min(len(p), commLen)] && path.Base(arg0) == p {
			return p
		}
	}
	return ""
}

// SMDirs are the places of SM scripts unless configured otherwise, and smSuffix is
// what their names end in: the paths that the table has as children of smapi.
var SMDirs, smSuffix = func() (dirs []string, suffix []byte) {
	for _, p := range event.SMAPI.Describe().Children {
		dir, name := path.Split(p)
		dirs = append(dirs, path.Clean(dir))
		suffix = []byte(strings.TrimPrefix(name, "*"))
	}
	return dirs, suffix
}()

// IsSM tells whether the file at p is an SM script: a file of one of dirs with
// a name that ends as those of scripts do. It does not allocate.
func IsSM(p []byte, dirs []string) bool {
	i := bytes.LastIndexByte(p, '/')
	if i < 0 || !bytes.HasSuffix(p[i+1:], smSuffix) {
		return false
	}
	for _, d := range dirs {
		if string(p[:i]) == d {
			return true
		}
	}
	return false
}
