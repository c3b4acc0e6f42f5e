// Package truth is the record of what really happened in a simulated dom0.
//
// Each process keeps its entries in memory and appends them to its own file,
// one JSON object a line, from a thread of the Go runtime: nothing of it goes over
// a socket or log line that a probe might see. Across processes an entry names
// its parent by a key that both sides know (ParentKey, Keys); Read resolves them.
package truth

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kind of an entry. They are those of the spans that dtagent makes.
type Kind string

// Kinds.
const (
	API       Kind = "api"       // one HTTP request to xapi: first byte read → last byte of the answer written
	Task      Kind = "task"      // the thread of an Async call: its start → its end
	Send      Kind = "send"      // a switch call in the caller's thread: `send <queue> <method>`
	RPC       Kind = "rpc"       // a switch call in its server's thread: taken → answered
	Operation Kind = "operation" // a task of xenopsd in its worker: `VM_start`, `Atomic (VM_unpause)`
	Atom      Kind = "atom"      // an atom in a worker: `VM_build`, `VBD_plug`
	Client    Kind = "client"    // a call to another host's xapi, in the caller's thread: written → answer read
	Process   Kind = "process"   // a child: fork → exit seen by the parent: `xenguest`, `LVMSR vdi_attach`
	Socket    Kind = "socket"    // a call to a daemon's socket, in the caller's thread; its server's entry, of kind RPC, is below it
	Delay     Kind = "delay"     // an injected delay: Name is its layer
)

// Entry is one thing that happened.
type Entry struct {
	ID        string   `json:"id"`               // unique on this machine
	Parent    string   `json:"parent,omitempty"` // ID; "" for a root
	ParentKey string   `json:"parent_key,omitempty"`
	Keys      []string `json:"keys,omitempty"`

	Kind       Kind   `json:"kind"`
	Name       string `json:"name"`
	Component  string `json:"component"`            // xapi, xenopsd, smapi; as event.Component prints it; "" for none
	Background bool   `json:"background,omitempty"` // not on behalf of any caller

	Start int64  `json:"start"` // CLOCK_MONOTONIC ns
	End   int64  `json:"end"`
	TGID  uint32 `json:"tgid"`
	TID   uint32 `json:"tid"` // the thread that did it; for a process its own pid

	Native      string `json:"native,omitempty"`      // send, and RPC without the switch: the traceparent of the toolstack's own span that the message names
	Traceparent string `json:"traceparent,omitempty"` // as the caller sent it, when xapi would use it
	Tag         string `json:"tag,omitempty"`         // task tag: `R:8ae06e1ea3d1`, `D:…`
	Detail      string `json:"detail,omitempty"`      // API: transport and path; operation: xenopsd's task id; send and RPC: `<queue> <id>`
	Err         string `json:"err,omitempty"`         // failure code

	Host string `json:"-"` // name of the directory that Read found it in
}

// Log is the record of a dom0 or a pool of them, by start time.
type Log struct {
	Entries []Entry
	byID    map[string]int
}

// Between is what keys begin with that name a thing on another host. All others
// are of one host, and hosts use the same ones.
const Between = "tunnel:"

// Read reads and joins the files of directories, one for each dom0. Keys that more
// than one entry carries mean the last of them that had begun when the child did.
func Read(dirs ...string) (*Log, error) {
	var files []string
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, "*.truth"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	l := &Log{}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("truth: %w", err)
		}
		s := bufio.NewScanner(bytes.NewReader(data))
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			var e Entry
			if err := json.Unmarshal(s.Bytes(), &e); err != nil {
				return nil, fmt.Errorf("truth: %s: %w", filepath.Base(name), err)
			}
			e.Host = filepath.Base(filepath.Dir(name))
			l.Entries = append(l.Entries, e)
		}
		if err := s.Err(); err != nil {
			return nil, fmt.Errorf("truth: %s: %w", filepath.Base(name), err)
		}
	}
	l.join()
	return l, nil
}

func (l *Log) join() {
	slices.SortStableFunc(l.Entries, func(a, b Entry) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	byKey := map[string][]int{}
	l.byID = make(map[string]int, len(l.Entries))
	for i, e := range l.Entries {
		l.byID[e.ID] = i
		for _, k := range e.Keys {
			byKey[k] = append(byKey[k], i)
		}
	}
	for i := range l.Entries {
		e := &l.Entries[i]
		if e.Parent == "" && e.ParentKey != "" {
			for _, j := range byKey[e.ParentKey] {
				if o := &l.Entries[j]; j != i && o.Start <= e.Start && (o.Host == e.Host || strings.HasPrefix(e.ParentKey, Between)) {
					e.Parent = l.Entries[j].ID
				}
			}
		}
		if j, ok := l.byID[e.Parent]; ok && l.Entries[j].Background {
			e.Background = true
		}
	}
}

// ByID returns the entry of that ID.
func (l *Log) ByID(id string) (Entry, bool) {
	i, ok := l.byID[id]
	if !ok {
		return Entry{}, false
	}
	return l.Entries[i], true
}

// Roots returns the entries without a parent in the log.
func (l *Log) Roots() []Entry {
	var out []Entry
	for _, e := range l.Entries {
		if _, ok := l.byID[e.Parent]; !ok {
			out = append(out, e)
		}
	}
	return out
}

// Children returns the entries whose parent is id, by start time.
func (l *Log) Children(id string) []Entry {
	var out []Entry
	for _, e := range l.Entries {
		if e.Parent == id && id != "" {
			out = append(out, e)
		}
	}
	return out
}

// Find returns the entries of that kind and name, by start time.
func (l *Log) Find(k Kind, name string) []Entry {
	var out []Entry
	for _, e := range l.Entries {
		if e.Kind == k && e.Name == name {
			out = append(out, e)
		}
	}
	return out
}

// Path returns the entry of that ID and its ancestors, outermost first.
func (l *Log) Path(id string) []Entry {
	var out []Entry
	for len(out) < len(l.Entries) {
		e, ok := l.ByID(id)
		if !ok {
			break
		}
		out = append(out, e)
		id = e.Parent
	}
	slices.Reverse(out)
	return out
}

// Tree prints the entry of that ID and all below it, one a line, indented.
func (l *Log) Tree(id string) string {
	var b strings.Builder
	var walk func(e Entry, depth int)
	walk = func(e Entry, depth int) {
		fmt.Fprintf(&b, "%*s%s %s %s [%d/%d] %.3fms", 2*depth, "", e.Component, e.Kind, e.Name, e.TGID, e.TID, float64(e.End-e.Start)/1e6)
		if e.Err != "" {
			fmt.Fprintf(&b, " %s", e.Err)
		}
		b.WriteByte('\n')
		if depth < 64 {
			for _, c := range l.Children(e.ID) {
				walk(c, depth+1)
			}
		}
	}
	if e, ok := l.ByID(id); ok {
		walk(e, 0)
	}
	return b.String()
}
