//go:build linux

package guestio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/guestio/shm"
)

// host is where processes and devices are looked up.
type host struct {
	proc, sys string
	shm       shm.Dir
}

// device is a block device.
type device struct{ major, minor uint32 }

func (d device) String() string { return fmt.Sprintf("%d:%d", d.major, d.minor) }
func (d device) number() uint32 { return bpf.DevNumber(d.major, d.minor) }

func deviceOf(dev uint64) device { return device{unix.Major(dev), unix.Minor(dev)} }

// parseDevice parses major:minor in a base.
func parseDevice(s string, base int) (device, bool) {
	a, b, ok := strings.Cut(strings.TrimSpace(s), ":")
	major, err1 := strconv.ParseUint(a, base, 12) // as wide as the kernel has them
	minor, err2 := strconv.ParseUint(b, base, 20)
	return device{uint32(major), uint32(minor)}, ok && err1 == nil && err2 == nil
}

// whole returns the disk of which d is a partition, else d.
func (h host) whole(d device) device {
	at := filepath.Join(h.sys, "dev/block", d.String())
	if _, err := os.Stat(filepath.Join(at, "partition")); err != nil {
		return d
	}
	at, err := filepath.EvalSymlinks(at)
	if err != nil {
		return d
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(at), "dev"))
	if disk, ok := parseDevice(string(text), 10); err == nil && ok {
		return disk
	}
	return d
}

// errNoDevice says that a file is on no block device.
var errNoDevice = errors.New("on a file system without a block device")

// behind returns the block device that I/O at a file goes to, and whether it is the
// file itself.
func behind(st *unix.Stat_t) (d device, itself bool, err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return deviceOf(st.Rdev), true, nil
	case unix.S_IFREG:
		if d = deviceOf(st.Dev); d.major == 0 {
			return d, false, errNoDevice
		}
		return d, false, nil
	}
	return d, false, errors.New("neither a file nor a block device")
}

// processes calls f for each process until it returns false.
func (h host) processes(f func(pid uint32) bool) {
	dir, err := os.Open(h.proc)
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if pid, err := strconv.ParseUint(n, 10, 31); err == nil && !f(uint32(pid)) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// domidFlag is how QEMU is told for which domain it is.
const domidFlag = "-xen-domid"

// qemus returns the QEMU processes by domain.
func (h host) qemus() map[uint32]uint32 {
	out := map[uint32]uint32{}
	h.processes(func(pid uint32) bool {
		b, err := readSome(filepath.Join(h.proc, strconv.Itoa(int(pid)), "cmdline"))
		if err != nil || !bytes.Contains(b, []byte(domidFlag)) {
			return true
		}
		args := strings.Split(string(b), "\x00")
		i := slices.Index(args, domidFlag)
		if i < 0 || i+1 >= len(args) {
			return true
		}
		if domid, err := strconv.ParseUint(args[i+1], 10, 16); err == nil {
			out[uint32(domid)] = pid
		}
		return true
	})
	return out
}

// threads returns the kernel threads whose name begins so.
func (h host) threads(prefix string) (out []uint32) {
	h.processes(func(pid uint32) bool {
		at := filepath.Join(h.proc, strconv.Itoa(int(pid)))
		if name, err := readSome(filepath.Join(at, "comm")); err != nil || !bytes.HasPrefix(name, []byte(prefix)) {
			return true
		}
		if line, err := readSome(filepath.Join(at, "cmdline")); err == nil && len(line) == 0 { // only kernel threads have none
			out = append(out, pid)
		}
		return true
	})
	slices.Sort(out)
	return out
}

// readSome reads the beginning of a file: more of a command line is not needed.
func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 16<<10)
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}
