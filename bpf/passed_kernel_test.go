//go:build linux

package bpf

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// inode returns the inode of an open file.
func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	qt.Assert(t, qt.IsNil(unix.Fstat(int(f.Fd()), &st)))
	return st.Ino
}

// A socket that comes with a message is known from then on, by the inode that it
// had in the process that passed it on; what is no socket is not, and neither is
// one that comes in a kernel that does not tell.
func TestPassedKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v, peer := c.pair(streamAndLog)
		two, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		qt.Assert(t, qt.IsNil(err))
		ours, theirs := os.NewFile(uintptr(two[0]), "ours"), os.NewFile(uintptr(two[1]), "theirs")
		defer ours.Close()
		defer theirs.Close()
		null, err := os.Open(os.DevNull)
		qt.Assert(t, qt.IsNil(err))
		defer null.Close()
		pass := func(f *os.File, text string) outcome {
			conn, err := peer.SyscallConn()
			qt.Assert(t, qt.IsNil(err))
			qt.Assert(t, qt.IsNil(conn.Control(func(fd uintptr) {
				qt.Check(t, qt.IsNil(unix.Sendmsg(int(fd), []byte(text), unix.UnixRights(int(f.Fd())), nil, 0)))
			})))
			r := v.must(order{Do: "receive", FD: 3, N: 16384})
			qt.Assert(t, qt.Equals(r.Ret, len(text)))
			return r
		}
		pass(null, strings.Repeat("n", 300))
		fd := pass(theirs, strings.Repeat("s", 300)).Ret2
		v.write(fd, strings.Repeat("answer", 100))
		recs := c.take(v.pid(), KindOpen, KindData)
		c.noLosses()
		var opened, written []got
		for _, r := range recs {
			switch {
			case r.Kind == KindOpen && r.Open.How == HowPassed:
				opened = append(opened, r)
			case r.Kind == KindData && r.Data.Dir == DirOut:
				written = append(written, r)
			}
		}
		if c.s.tier == Legacy {
			qt.Check(t, qt.HasLen(opened, 0))
			qt.Check(t, qt.HasLen(written, 0))
			return
		}
		qt.Assert(t, qt.HasLen(opened, 1))
		qt.Check(t, qt.Equals(opened[0].Open.FD, int32(fd)))
		qt.Check(t, qt.Equals(opened[0].Open.Ino, inode(t, theirs)))
		qt.Assert(t, qt.HasLen(written, 1))
		qt.Check(t, qt.Equals(written[0].Data.Ino, inode(t, theirs)))
		qt.Check(t, qt.Equals(written[0].Data.Born, opened[0].Open.Born))
	})
}

// An accepted unix socket tells who connected it, and with which socket.
func TestUnixPeerKernel(t *testing.T) {
	inTiers(t, func(t *testing.T, c *collector) {
		v := startVictim(t)
		qt.Assert(t, qt.IsNil(c.s.SetTarget(v.pid(), Target{Watch: streamAndLog})))
		path := filepath.Join(t.TempDir(), "s")
		l := v.must(order{Do: "listen", Path: path}).Ret
		conn, err := net.Dial("unix", path)
		qt.Assert(t, qt.IsNil(err))
		defer conn.Close()
		raw, err := conn.(syscall.Conn).SyscallConn()
		qt.Assert(t, qt.IsNil(err))
		var st unix.Stat_t
		qt.Assert(t, qt.IsNil(raw.Control(func(fd uintptr) { qt.Check(t, qt.IsNil(unix.Fstat(int(fd), &st))) })))
		v.must(order{Do: "accept", FD: l})
		recs := c.take(v.pid(), KindOpen)
		qt.Assert(t, qt.HasLen(recs, 1))
		o := recs[0].Open
		ino, tgid := st.Ino, uint32(os.Getpid())
		if c.s.tier == Legacy {
			ino, tgid = 0, 0
		}
		qt.Check(t, qt.Equals(binary.LittleEndian.Uint64(o.Peer[:]), ino))
		qt.Check(t, qt.Equals(binary.LittleEndian.Uint32(o.Peer[8:]), tgid))
		c.noLosses()
	})
}
