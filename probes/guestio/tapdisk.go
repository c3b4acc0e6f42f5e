//go:build linux

package guestio

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xenserver/dtagent/probes/guestio/shm"
)

// tapdisk is a process that serves a disk. start tells it from others that had its
// number before.
type tapdisk struct {
	shm.Tapdisk
	start uint64
}

func (t *tapdisk) same(o *tapdisk) bool {
	return t != nil && o != nil && t.TGID == o.TGID && t.start == o.start
}

// comm is the name of the processes.
const comm = "tapdisk"

// process returns a tapdisk that is there: a number may have passed on to another
// program, and what one left in shared memory when it was killed is still there.
func (h host) process(tgid uint32) (*tapdisk, bool) {
	b, err := readSome(filepath.Join(h.proc, strconv.FormatUint(uint64(tgid), 10), "stat"))
	if err != nil {
		return nil, false
	}
	name, start, ok := parseStat(b)
	if !ok || name != comm {
		return nil, false
	}
	return &tapdisk{Tapdisk: shm.Tapdisk{TGID: tgid}, start: start}, true
}

// parseStat parses "pid (comm) state …" of a process that runs. start is in clock
// ticks since the host started.
func parseStat(b []byte) (comm string, start uint64, ok bool) {
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		return "", 0, false
	}
	w := strings.Fields(string(b[shut+1:]))
	if len(w) < 20 || w[0] == "Z" || w[0] == "X" {
		return "", 0, false
	}
	start, err := strconv.ParseUint(w[19], 10, 64)
	return string(b[open+1 : shut]), start, err == nil
}

// tapdisks returns those that serve guests' disks, by what they have in shared memory,
// and how many more there are than are looked at.
func (h host) tapdisks() (out []tapdisk, more int, err error) {
	all, more, err := h.shm.Tapdisks()
	for _, s := range all {
		if len(s.VBDs) == 0 { // attached to dom0
			continue
		}
		if t, ok := h.process(s.TGID); ok {
			t.Tapdisk = s
			out = append(out, *t)
		}
	}
	return out, more, err
}

// pauses keeps how long a tapdisk was paused: it has closed its images then, and taken
// away the file in shared memory that tells of them.
type pauses struct {
	file, images bool          // were there some time
	since        time.Time     // zero: it is not paused
	total        time.Duration // of those that have ended
	count        uint64        // that began
}

// look is told whether the file and the images are there.
func (p *pauses) look(file, images bool, now time.Time) {
	paused := p.file && !file || p.images && !images
	p.file, p.images = p.file || file, p.images || images
	switch {
	case !paused && !p.since.IsZero():
		p.total += now.Sub(p.since)
		p.since = time.Time{}
	case paused && p.since.IsZero():
		p.since = now
		p.count++
	}
}

// until returns how long it was paused up to now.
func (p *pauses) until(now time.Time) time.Duration {
	if p.since.IsZero() {
		return p.total
	}
	return p.total + now.Sub(p.since)
}
