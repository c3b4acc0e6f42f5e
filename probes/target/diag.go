//go:build linux

package target

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// SwitchPath is the socket of message-switch.
const SwitchPath = "/var/run/message-switch/sock"

// unixSocket is what unix_diag tells of one socket.
type unixSocket struct {
	ino, peer uint32 // peer is 0 if it has none
	name      string // path it is bound to, or its listener was
}

// XenstoredPath is the socket of xenstored.
const XenstoredPath = "/var/run/xenstored/socket"

// Clients returns the inodes of unix sockets of this network name space
// whose peer is bound to path. The kernel needs unix_diag for that; without
// it there is an error.
func Clients(path string) (map[uint64]bool, error) {
	all, err := unixSockets()
	if err != nil {
		return nil, err
	}
	bound := map[uint32]bool{}
	for _, s := range all {
		if boundTo(s.name, path) {
			bound[s.ino] = true
		}
	}
	out := map[uint64]bool{}
	for _, s := range all {
		if s.peer != 0 && bound[s.peer] {
			out[uint64(s.ino)] = true
		}
	}
	return out, nil
}

// Layout of struct unix_diag_req and unix_diag_msg.
const (
	diagReqLen = 24
	diagMsgLen = 16
)

// unixSockets asks unix_diag for all unix sockets. (UnixSocketDiagInfo of
// netlink 1.3.1 takes family and type for each other and so stops at the first
// datagram socket.)
func unixSockets() ([]unixSocket, error) {
	body := make([]byte, diagReqLen)
	body[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0)) // all states
	binary.NativeEndian.PutUint32(body[12:], 1<<netlink.UNIX_DIAG_NAME|1<<netlink.UNIX_DIAG_PEER)
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddRawData(body)
	var out []unixSocket
	// An interrupted dump holds most sockets; the kernel side finds the others.
	msgs, err := req.Execute(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil && len(msgs) == 0 {
		return nil, fmt.Errorf("unix_diag: %w", err)
	}
	for _, m := range msgs {
		if s, ok := parseDiag(m); ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// parseDiag parses one struct unix_diag_msg and its attributes.
func parseDiag(m []byte) (s unixSocket, ok bool) {
	if len(m) < diagMsgLen || m[0] != unix.AF_UNIX {
		return s, false
	}
	s.ino = binary.NativeEndian.Uint32(m[4:])
	for m = m[diagMsgLen:]; len(m) >= unix.SizeofNlAttr; {
		n := int(binary.NativeEndian.Uint16(m))
		if n < unix.SizeofNlAttr || n > len(m) {
			return s, false
		}
		switch v := m[unix.SizeofNlAttr:n]; binary.NativeEndian.Uint16(m[2:]) {
		case netlink.UNIX_DIAG_NAME:
			v, _, _ = bytes.Cut(v, []byte{0}) // an abstract name begins with NUL: none
			s.name = string(v)
		case netlink.UNIX_DIAG_PEER:
			if len(v) >= 4 {
				s.peer = binary.NativeEndian.Uint32(v)
			}
		}
		m = m[min((n+3)&^3, len(m)):]
	}
	return s, true
}

// boundTo tells whether name is path; /var/run is a link to /run.
func boundTo(name, path string) bool {
	return name != "" && strings.TrimPrefix(name, "/var") == strings.TrimPrefix(path, "/var")
}
