//go:build linux

package guestio

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// below is what a block device's data go through further down.
type below struct {
	targets []netip.AddrPort // of iSCSI
	fabric  bool             // Fibre Channel
}

// Bounds of a look at what is below a device.
const (
	maxBelow = 256 // devices
	maxPaths = 64
)

// below looks what there is below a device, by sysfs.
func (h host) below(d device) (b below) {
	seen := map[string]bool{}
	var look func(at string)
	look = func(at string) {
		at, err := filepath.EvalSymlinks(at)
		if err != nil || seen[at] || len(seen) >= maxBelow {
			return
		}
		seen[at] = true
		if _, err := os.Stat(filepath.Join(at, "partition")); err == nil {
			look(filepath.Dir(at))
			return
		}
		for _, part := range strings.Split(at, "/") {
			if strings.HasPrefix(part, "rport-") {
				b.fabric = true
			}
			if n, ok := strings.CutPrefix(part, "session"); ok && isNumber(n) {
				b.add(h.connections(n))
			}
		}
		slaves, err := os.Open(filepath.Join(at, "slaves"))
		if err != nil {
			return
		}
		defer slaves.Close()
		names, _ := slaves.Readdirnames(maxPaths)
		slices.Sort(names)
		for _, n := range names {
			look(filepath.Join(at, "slaves", n))
		}
	}
	look(filepath.Join(h.sys, "dev/block", d.String()))
	return b
}

func (b *below) add(targets []netip.AddrPort) {
	for _, t := range targets {
		if !slices.Contains(b.targets, t) && len(b.targets) < maxPaths {
			b.targets = append(b.targets, t)
		}
	}
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// connections returns where the connections of an iSCSI session go.
func (h host) connections(session string) (out []netip.AddrPort) {
	found, _ := filepath.Glob(filepath.Join(h.sys, "class/iscsi_connection/connection"+session+":*"))
	for _, at := range found[:min(len(found), maxPaths)] {
		read := func(name string) string {
			b, _ := readSome(filepath.Join(at, name))
			return strings.TrimSpace(string(b))
		}
		addr, err1 := netip.ParseAddr(strings.Trim(read("address"), "[]"))
		port, err2 := strconv.ParseUint(read("port"), 10, 16)
		if err1 == nil && err2 == nil {
			out = append(out, netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(port)))
		}
	}
	return out
}
