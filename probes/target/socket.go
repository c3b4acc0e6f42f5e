//go:build linux

package target

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Socket is an open stream socket of a process.
type Socket struct {
	FD        int32
	Ino       uint64
	Listening bool
	Local     string // path of a unix socket, address of a TCP socket; "" if it has none
}

// maxSockets bounds what is read of one process.
const maxSockets = 65536

// Sockets lists the stream sockets that a process has open.
func (p Proc) Sockets(tgid uint32) ([]Socket, error) {
	dir := p.path(tgid, "fd")
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("sockets of process %d: %w", tgid, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxSockets)
	if err != nil && len(names) == 0 {
		return nil, nil // none open
	}
	known, err := p.streams(tgid)
	if err != nil {
		return nil, err
	}
	var out []Socket
	for _, name := range names {
		fd, err := strconv.ParseInt(name, 10, 32)
		if err != nil {
			continue
		}
		ino, ok := socketIno(dir + "/" + name)
		if !ok {
			continue
		}
		if s, ok := known[ino]; ok {
			s.FD = int32(fd)
			out = append(out, s)
		}
	}
	return out, nil
}

// Local returns the path or address that a socket of a process is bound to,
// "" if it cannot be found.
func (p Proc) Local(tgid uint32, fd int32) string {
	ino, ok := socketIno(p.path(tgid, "fd/"+strconv.Itoa(int(fd))))
	if !ok {
		return ""
	}
	known, err := p.streams(tgid)
	if err != nil {
		return ""
	}
	return known[ino].Local
}

func socketIno(link string) (uint64, bool) {
	name, err := os.Readlink(link)
	if err != nil {
		return 0, false
	}
	digits, ok := strings.CutPrefix(name, "socket:[")
	if !ok {
		return 0, false
	}
	ino, err := strconv.ParseUint(strings.TrimSuffix(digits, "]"), 10, 64)
	return ino, err == nil
}

// streams reads the stream sockets of the process's network name space, by
// inode.
func (p Proc) streams(tgid uint32) (map[uint64]Socket, error) {
	out := map[uint64]Socket{}
	for _, table := range []struct {
		name  string
		parse func([]string) (Socket, bool)
	}{{"net/unix", parseUnix}, {"net/tcp", parseTCP}, {"net/tcp6", parseTCP}} {
		f, err := os.Open(p.path(tgid, table.name))
		if errors.Is(err, os.ErrNotExist) && table.name != "net/unix" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("sockets of process %d: %w", tgid, err)
		}
		in := bufio.NewScanner(f)
		for in.Scan() {
			if s, ok := table.parse(strings.Fields(in.Text())); ok {
				out[s.Ino] = s
			}
		}
		err = in.Err()
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("sockets of process %d: %s: %w", tgid, table.name, err)
		}
	}
	return out, nil
}

// parseUnix parses a line of /proc/net/unix:
//
//	Num RefCount Protocol Flags Type St Inode Path
func parseUnix(w []string) (s Socket, ok bool) {
	const stream, accepting = 1, 0x10000
	if len(w) < 7 {
		return s, false
	}
	kind, err1 := strconv.ParseUint(w[4], 16, 16)
	flags, err2 := strconv.ParseUint(w[3], 16, 32)
	ino, err3 := strconv.ParseUint(w[6], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || kind != stream || ino == 0 {
		return s, false
	}
	s = Socket{Ino: ino, Listening: flags&accepting != 0}
	if len(w) > 7 {
		s.Local = strings.Join(w[7:], " ")
	}
	return s, true
}

// parseTCP parses a line of /proc/net/tcp or tcp6:
//
//	sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
func parseTCP(w []string) (s Socket, ok bool) {
	const listen = "0A"
	if len(w) < 10 {
		return s, false
	}
	ino, err := strconv.ParseUint(w[9], 10, 64)
	if err != nil || ino == 0 {
		return s, false
	}
	s = Socket{Ino: ino, Listening: w[3] == listen}
	if a, ok := parseHexAddr(w[1]); ok {
		s.Local = a.String()
	}
	return s, true
}

// parseHexAddr parses 0100007F:0050: words of 4 bytes in the host's order, here
// little endian.
func parseHexAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || len(addr) != 8 && len(addr) != 32 {
		return netip.AddrPort{}, false
	}
	var b [16]byte
	for i := range len(addr) / 2 {
		x, err := strconv.ParseUint(addr[2*i:2*i+2], 16, 8)
		if err != nil {
			return netip.AddrPort{}, false
		}
		b[i&^3|(3-i&3)] = byte(x)
	}
	if len(addr) == 8 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(n)), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16(b), uint16(n)), true
}
