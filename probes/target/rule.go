//go:build linux

// Package target finds the processes of the toolstack and says which component
// each is and what of it is watched.
package target

import (
	"bytes"
	"path"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// everything is watched of a daemon whose component is wanted.
const everything = bpf.WatchStream | bpf.WatchLog | bpf.WatchProcess

// rule says that one component needs a program watched.
type rule struct {
	wanted  event.Component // the component that an Observer wants
	program string          // base name of the executable
	is      event.Component // the component that the process belongs to
	watch   bpf.Watch
}

// rules is the table of components. SM scripts are children of xapi, so smapi
// needs xapi watched, but only for processes.
var rules = []rule{
	{event.Xapi, "xapi", event.Xapi, everything},
	{event.Xenopsd, "xenopsd-xc", event.Xenopsd, everything},
	{event.Xenopsd, "xenopsd", event.Xenopsd, everything},
	{event.Xenopsd, "xenopsd-simulator", event.Xenopsd, everything},
	{event.XapiClusterd, "xapi-clusterd", event.XapiClusterd, everything},
	{event.SMAPI, "xapi-storage-script", event.SMAPI, everything},
	{event.SMAPI, "xapi", event.Xapi, bpf.WatchProcess},
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
		known := false
		for _, n := range names {
			known = known || n == r.program
		}
		if !known {
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

// SMDirs are the places of SM scripts unless configured otherwise.
var SMDirs = []string{"/opt/xensource/sm"}

// IsSM tells whether the file at p is an SM script: a file of one of dirs with
// a name that ends in SR. It does not allocate.
func IsSM(p []byte, dirs []string) bool {
	i := bytes.LastIndexByte(p, '/')
	if i < 0 || !bytes.HasSuffix(p[i+1:], []byte("SR")) {
		return false
	}
	for _, d := range dirs {
		if string(p[:i]) == d {
			return true
		}
	}
	return false
}
