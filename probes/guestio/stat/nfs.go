//go:build linux

package stat

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// Mount is where a file system is mounted.
type Mount struct {
	Point  string
	Source string // of a network file system: host:/path
	Type   string
	Dev    string         // major:minor, as files on it have it
	Server netip.AddrPort // of NFS; not valid if it is not known
}

// Network tells whether it is a file system whose files are on another host.
func (m *Mount) Network() bool {
	switch m.Type {
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "fuse.moosefs", "moosefs":
		return true
	}
	return false
}

// Bounds of what is kept.
const (
	maxMounts = 4096
	maxText   = 512
)

// Mounts returns the mounts of this process.
func Mounts(proc string) ([]Mount, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, err
	}
	all, err := fs.GetMounts()
	if err != nil {
		return nil, err
	}
	var out []Mount
	for _, m := range all[:min(len(all), maxMounts)] {
		out = append(out, Mount{
			Point: cut(m.MountPoint), Source: cut(m.Source), Type: cut(m.FSType), Dev: m.MajorMinorVer,
			Server: nfsServer(m.FSType, m.SuperOptions),
		})
	}
	return out, nil
}

// ByDev returns mounts by Dev; of those that have the same, the first.
func ByDev(all []Mount) map[string]Mount {
	out := map[string]Mount{}
	for _, m := range all {
		if _, ok := out[m.Dev]; !ok {
			out[m.Dev] = m
		}
	}
	return out
}

// Under returns the mount that a path without links is on, nil if it is on none. It asks
// nobody: to look at a file of a server that does not answer takes until it does.
func Under(all []Mount, path string) (m *Mount) {
	for i := range all {
		rest, ok := strings.CutPrefix(path, all[i].Point)
		if ok && (rest == "" || rest[0] == '/' || all[i].Point == "/") && (m == nil || len(all[i].Point) >= len(m.Point)) {
			m = &all[i] // of those at one place the last is on top
		}
	}
	return m
}

func cut(s string) string { return s[:min(len(s), maxText)] }

// nfsPort is that of servers whose mounts do not say.
const nfsPort = 2049

// nfsServer returns what the options say of where the server is.
func nfsServer(fstype string, options map[string]string) netip.AddrPort {
	if fstype != "nfs" && fstype != "nfs4" {
		return netip.AddrPort{}
	}
	addr, err := netip.ParseAddr(options["addr"])
	if err != nil {
		return netip.AddrPort{}
	}
	port, err := strconv.ParseUint(options["port"], 10, 16)
	if err != nil || port == 0 {
		port = nfsPort
	}
	return netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(port))
}

// RPC are the calls of a kind to an NFS server that were answered.
type RPC struct {
	Ops     uint64
	Sent    uint64 // transmissions: those of Ops and, if more, retransmissions
	Major   uint64 // timeouts after which the client begins anew
	Errors  uint64 // answered with one; Linux 5.3 and later
	Bytes   uint64 // both ways, with headers
	Queue   time.Duration
	RTT     time.Duration
	Execute time.Duration // from asked for until done: Queue and RTT are parts of it
}

// Retransmitted returns how many were sent again.
func (r *RPC) Retransmitted() uint64 {
	if r.Sent < r.Ops {
		return 0
	}
	return r.Sent - r.Ops
}

// NFS are the calls of a mount.
type NFS struct {
	Source   string // host:/path
	Read     RPC
	Write    RPC
	Other    RPC
	Connects uint64 // of its connections to the server
}

// ReadNFS returns the NFS mounts of this process by mount point.
func ReadNFS(proc string) (map[string]NFS, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, err
	}
	self, err := fs.Self()
	if err != nil {
		return nil, err
	}
	all, err := self.MountStats()
	if err != nil {
		return nil, fmt.Errorf("mountstats: %w", err)
	}
	out := map[string]NFS{}
	for _, m := range all {
		s, ok := m.Stats.(*procfs.MountStatsNFS)
		if !ok || len(out) >= maxMounts {
			continue
		}
		out[cut(m.Mount)] = nfsOf(cut(m.Device), s)
	}
	return out, nil
}

func nfsOf(source string, s *procfs.MountStatsNFS) NFS {
	n := NFS{Source: source}
	for i := range s.Operations {
		o := &s.Operations[i]
		r := &n.Other
		switch o.Operation {
		case "READ":
			r = &n.Read
		case "WRITE":
			r = &n.Write
		}
		r.Ops += o.Requests
		r.Sent += o.Transmissions
		r.Major += o.MajorTimeouts
		r.Errors += o.Errors
		r.Bytes += o.BytesSent + o.BytesReceived
		r.Queue += milliseconds(o.CumulativeQueueMilliseconds)
		r.RTT += milliseconds(o.CumulativeTotalResponseMilliseconds)
		r.Execute += milliseconds(o.CumulativeTotalRequestMilliseconds)
	}
	for i := range s.Transport {
		n.Connects += s.Transport[i].Connect
	}
	return n
}

func milliseconds(ms uint64) time.Duration {
	const longest = uint64(1<<63-1) / 1e6 / 64 // they are summed up
	return time.Duration(min(ms, longest)) * time.Millisecond
}
