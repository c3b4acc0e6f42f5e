//go:build linux

package target

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

// Process is one process of the toolstack. Start tells the users of a pid
// apart.
type Process struct {
	TGID    uint32
	Start   uint64 // clock ticks since boot
	Program string // name in the table of components
}

// Proc reads a proc file system.
type Proc struct {
	root string
}

// NewProc reads the one at root; "" means /proc.
func NewProc(root string) Proc {
	if root == "" {
		root = "/proc"
	}
	return Proc{root: root}
}

func (p Proc) path(tgid uint32, name string) string {
	return p.root + "/" + strconv.FormatUint(uint64(tgid), 10) + "/" + name
}

// stat is what is used of /proc/PID/stat.
type stat struct {
	comm   string
	parent uint32
	start  uint64
}

// stat reads the state of a process; false if it has ended.
func (p Proc) stat(tgid uint32) (stat, bool) {
	b, err := readSome(p.path(tgid, "stat"), 1024)
	if err != nil {
		return stat{}, false
	}
	return parseStat(b)
}

// parseStat parses "pid (comm) state ppid …"; comm may hold anything.
func parseStat(b []byte) (s stat, ok bool) {
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		return s, false
	}
	w := strings.Fields(string(b[shut+1:]))
	if len(w) < 20 || w[0] == "Z" || w[0] == "X" {
		return s, false
	}
	parent, err1 := strconv.ParseUint(w[1], 10, 32)
	start, err2 := strconv.ParseUint(w[19], 10, 64)
	if err1 != nil || err2 != nil {
		return s, false
	}
	return stat{comm: string(b[open+1 : shut]), parent: uint32(parent), start: start}, true
}

// Process looks at one process; false if it has ended or is not of the
// toolstack.
func (p Proc) Process(tgid uint32) (Process, bool) {
	found, _, ok := p.process(tgid)
	return found, ok
}

func (p Proc) process(tgid uint32) (Process, stat, bool) {
	s, ok := p.stat(tgid)
	if !ok {
		return Process{}, s, false
	}
	program := programOf(s.comm, p.exe(tgid), "")
	if program == "" {
		if arg0 := p.arg0(tgid); arg0 != "" {
			program = programOf(s.comm, "", arg0)
		}
	}
	if program == "" {
		return Process{}, s, false
	}
	return Process{TGID: tgid, Start: s.start, Program: program}, s, true
}

// exe returns the base name of the executable, "" if it cannot be read (kernel
// threads, processes of others). An upgrade under a running daemon leaves
// " (deleted)" behind.
func (p Proc) exe(tgid uint32) string {
	name, err := os.Readlink(p.path(tgid, "exe"))
	if err != nil {
		return ""
	}
	return path.Base(strings.TrimSuffix(name, " (deleted)"))
}

func (p Proc) arg0(tgid uint32) string {
	b, err := readSome(p.path(tgid, "cmdline"), 512)
	if err != nil {
		return ""
	}
	arg0, _, _ := bytes.Cut(b, []byte{0})
	return string(arg0)
}

// Is tells whether tgid is still the process that started at start.
func (p Proc) Is(tgid uint32, start uint64) bool {
	s, ok := p.stat(tgid)
	return ok && s.start == start
}

// Exists tells whether there is a process tgid, whoever it is.
func (p Proc) Exists(tgid uint32) bool {
	_, ok := p.stat(tgid)
	return ok
}

// scanned is a Process with what decides whether it counts.
type scanned struct {
	Process
	child bool // of a process of the same program
}

// each calls f with the tgids of all processes.
func (p Proc) each(f func(tgid uint32)) error {
	dir, err := os.Open(p.root)
	if err != nil {
		return fmt.Errorf("processes: %w", err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if n, err := strconv.ParseUint(name, 10, 32); err == nil {
				f(uint32(n))
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("processes: %w", err)
		}
	}
}

// scan looks at all processes.
func (p Proc) scan() ([]scanned, error) {
	var out []scanned
	parents := map[uint32]uint32{}
	if err := p.each(func(tgid uint32) {
		if found, s, ok := p.process(tgid); ok {
			out = append(out, scanned{Process: found})
			parents[found.TGID] = s.parent
		}
	}); err != nil {
		return nil, err
	}
	for i := range out {
		for j := range out {
			if out[j].TGID == parents[out[i].TGID] && out[j].Program == out[i].Program {
				out[i].child = true
			}
		}
	}
	return out, nil
}

// readSome reads at most n bytes of a small file.
func readSome(name string, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	m, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:m], nil
}
