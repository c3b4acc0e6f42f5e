//go:build linux

// Package shm reads what tapdisks tell of themselves in shared memory: whose disk each
// serves, what it has done, how full its ring is. They write it anyway, and are not
// asked.
//
// What is read was written by other processes, perhaps while it is read: nothing in it
// is trusted, and no more than a page is read of a file.
package shm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is where the files are.
const Root = "/dev/shm"

// Bounds of what is looked at: processes, and files of one.
const (
	MaxTapdisks = 4096
	maxFiles    = 256
	maxEntries  = 65536 // in Root
	page        = 4096
)

// VBD is a disk of a guest.
type VBD struct{ Domid, Devid uint32 }

// Tapdisk is what the names of the files of a tapdisk say.
type Tapdisk struct {
	TGID  uint32
	VBDs  []VBD    // whose rings it serves
	Open  bool     // its image is open: it is not while the tapdisk is paused
	Aside []string // names of the counters of requests that come by other ways than a ring
}

// Dir is a directory such as Root.
type Dir string

const (
	processPrefix = "td3-"
	ringPrefix    = "vbd3-"
)

// ParseProcess returns the process that a directory is of.
func ParseProcess(name string) (tgid uint32, ok bool) {
	digits, ok := strings.CutPrefix(name, processPrefix)
	n, err := parseNumber(digits, 31)
	return n, ok && err == nil && n > 0
}

// parseVBD parses <prefix><domid>-<devid>.
func parseVBD(name, prefix string) (v VBD, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	a, b, two := strings.Cut(rest, "-")
	domid, err1 := parseNumber(a, 16)
	devid, err2 := parseNumber(b, 31)
	return VBD{domid, devid}, ok && two && err1 == nil && err2 == nil
}

var errNumber = errors.New("no number")

// parseNumber takes numbers only as tapdisk writes them.
func parseNumber(s string, bits int) (uint32, error) {
	if s == "" || s[0] < '0' || s[0] > '9' || len(s) > 1 && s[0] == '0' {
		return 0, errNumber
	}
	n, err := strconv.ParseUint(s, 10, bits)
	return uint32(n), err
}

// Tapdisks returns those that have files, by number, and how many were left out for
// being too many.
func (d Dir) Tapdisks() (out []Tapdisk, more int, err error) {
	names, err := entries(string(d), maxEntries)
	if err != nil {
		return nil, 0, err
	}
	for _, n := range names {
		tgid, ok := ParseProcess(n)
		if !ok {
			continue
		}
		if len(out) >= MaxTapdisks {
			more++
			continue
		}
		if t, err := d.Tapdisk(tgid); err == nil {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Tapdisk) int { return cmp.Compare(a.TGID, b.TGID) })
	return out, more, nil
}

// Of returns the directory of a tapdisk.
func (d Dir) Of(tgid uint32) string {
	return filepath.Join(string(d), processPrefix+strconv.FormatUint(uint64(tgid), 10))
}

// Tapdisk returns what the names of the files of one say.
func (d Dir) Tapdisk(tgid uint32) (Tapdisk, error) {
	t := Tapdisk{TGID: tgid}
	names, err := entries(d.Of(tgid), maxFiles)
	if err != nil {
		return t, err
	}
	slices.Sort(names)
	for _, n := range names {
		v, ok := parseVBD(n, "vbd-")
		switch {
		case ok:
			t.VBDs = append(t.VBDs, v)
		case strings.HasPrefix(n, "vdi-"):
			t.Open = true
		case strings.HasPrefix(n, "blktap-"), strings.HasPrefix(n, "nbd-"):
			t.Aside = append(t.Aside, n)
		}
	}
	return t, nil
}

// entries returns the names in a directory, which is no link.
func entries(name string, most int) ([]string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(most)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// read reads the first page of a regular file into b and returns how much that is.
func read(name string, b *[page]byte) (n int, modified int64, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, 0, fmt.Errorf("%s: not a file", name)
	}
	n, err = io.ReadFull(f, b[:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, st.ModTime().UnixNano(), err
}
