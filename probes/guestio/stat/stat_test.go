//go:build linux

package stat

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

const statText = `cpu  100 1 20 3000 50 6 7 80 9 10
cpu0 50 1 10 1500 25 3 4 40 4 5
cpu1 50 0 10 1500 25 3 3 40 5 5
intr 12345 0 0 0
ctxt 1
`

func TestCPU(t *testing.T) {
	c, err := ParseCPU([]byte(statText))
	qt.Assert(t, qt.IsNil(err))
	const tick = 10 * time.Millisecond
	qt.Check(t, qt.Equals(c, CPU{CPUs: 2, Total: 3264 * tick, Idle: 3050 * tick, Steal: 80 * tick}))
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu a b c d e f g h\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu " + strings.Repeat("18446744073709551615 ", 8)} {
		_, err := ParseCPU([]byte(bad))
		qt.Check(t, qt.ErrorIs(err, ErrForm), qt.Commentf(bad))
	}
	c, err = ReadCPU("/proc")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(c.CPUs > 0 && c.Total > c.Idle), qt.Commentf("%+v", c))
}

func TestSched(t *testing.T) {
	s, err := ParseSched([]byte("10 20 3\n"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(s, Sched{10, 20}))
	for _, bad := range []string{"", "1 2", "-1 2 3", "1 x 3"} {
		_, err := ParseSched([]byte(bad))
		qt.Check(t, qt.ErrorIs(err, ErrForm))
	}
	all, err := ReadSched("/proc", uint32(os.Getpid()))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("needs /proc/PID/schedstat (CONFIG_SCHED_INFO)")
	}
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(len(all) > 1))
	_, err = ReadSched("/proc", 1<<31)
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

// root makes a proc file system of files.
func root(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(dir, "1"), 0o755)))
	qt.Assert(t, qt.IsNil(os.Symlink("1", filepath.Join(dir, "self"))))
	for name, text := range files {
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "1", name), []byte(text), 0o644)))
	}
	return dir
}

const mountInfo = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:45 / /run/sr-mount/5f2a rw,relatime shared:9 - nfs 10.0.0.7:/export/5f2a rw,vers=3,soft,proto=tcp,timeo=200,addr=10.0.0.7
31 21 0:45 /sub /mnt rw,relatime shared:9 - nfs 10.0.0.7:/export/5f2a rw,addr=10.0.0.7
32 21 0:46 / /run/sr-mount/6 rw,relatime - nfs4 [fe80::1]:/x rw,port=2050,addr=fe80::1%eth0
33 21 0:47 / /run/sr-mount/SMB/h/7 rw - cifs //h/share rw,addr=10.0.0.8
`

func TestMounts(t *testing.T) {
	all, err := Mounts(root(t, map[string]string{"mountinfo": mountInfo}))
	qt.Assert(t, qt.IsNil(err))
	m := ByDev(all)
	nfs := m["0:45"]
	qt.Check(t, qt.Equals(nfs, Mount{
		Point: "/run/sr-mount/5f2a", Source: "10.0.0.7:/export/5f2a", Type: "nfs", Dev: "0:45", Server: netip.MustParseAddrPort("10.0.0.7:2049"),
	}))
	qt.Check(t, qt.IsTrue(nfs.Network()))
	qt.Check(t, qt.Equals(m["0:46"].Server, netip.MustParseAddrPort("[fe80::1]:2050")))
	smb, local := m["0:47"], m["8:1"]
	qt.Check(t, qt.IsTrue(smb.Network()))
	qt.Check(t, qt.IsFalse(smb.Server.IsValid()))
	qt.Check(t, qt.IsFalse(local.Network()))
	_, err = Mounts(root(t, nil))
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
	for path, dev := range map[string]string{
		"/run/sr-mount/5f2a/x.vhd": "0:45", "/run/sr-mount/5f2a": "0:45", "/run/sr-mount/5f2ab/x": "8:1", "/run/sr-mount/SMB/h/7/a/b": "0:47", "/": "8:1",
	} {
		on := Under(all, path)
		qt.Assert(t, qt.IsNotNil(on), qt.Commentf("%s", path))
		qt.Check(t, qt.Equals(on.Dev, dev), qt.Commentf("%s", path))
	}
	qt.Check(t, qt.IsNil(Under(all, "relative")))
	qt.Check(t, qt.IsNil(Under(nil, "/")))
	all, err = Mounts("/proc")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(len(all) > 0))
}

const mountStats = `device proc mounted on /proc with fstype proc
device 10.0.0.7:/export/5f2a mounted on /run/sr-mount/5f2a with fstype nfs statvers=1.1
	opts:	rw,vers=3,rsize=131072,wsize=131072,proto=tcp,addr=10.0.0.7
	age:	100
	caps:	caps=0x3fef,wtmult=512,dtsize=131072,bsize=0,namlen=255
	sec:	flavor=1,pseudoflavor=1
	events:	1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27
	bytes:	1 2 3 4 5 6 7 8
	RPC iostats version: 1.1  p/v: 100003/3 (nfs)
	xprt:	tcp 700 1 2 0 9 1000 999 0 5000 10 2 0 0
	per-op statistics
	        NULL: 0 0 0 0 0 0 0 0
	        READ: 100 103 1 15000 410000 50 900 1000
	       WRITE: 10 10 0 41000 1500 5 300 310
	      COMMIT: 2 2 0 200 300 0 20 20

`

func TestNFS(t *testing.T) {
	all, err := ReadNFS(root(t, map[string]string{"mountstats": mountStats}))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(all, 1))
	n := all["/run/sr-mount/5f2a"]
	qt.Check(t, qt.Equals(n.Source, "10.0.0.7:/export/5f2a"))
	const ms = time.Millisecond
	qt.Check(t, qt.Equals(n.Read, RPC{Ops: 100, Sent: 103, Major: 1, Bytes: 425000, Queue: 50 * ms, RTT: 900 * ms, Execute: 1000 * ms}))
	qt.Check(t, qt.Equals(n.Read.Retransmitted(), 3))
	qt.Check(t, qt.Equals(n.Write.RTT, 300*ms))
	qt.Check(t, qt.Equals(n.Other.Ops, 2))
	qt.Check(t, qt.Equals(n.Connects, 2))
	_, err = ReadNFS(root(t, map[string]string{"mountstats": "device x mounted at y\n"}))
	qt.Check(t, qt.ErrorMatches(err, "mountstats: .*"))
	_, err = ReadNFS("/proc")
	qt.Check(t, qt.IsNil(err))
}

func TestMeter(t *testing.T) {
	server, other := netip.MustParseAddrPort("10.0.0.7:2049"), netip.MustParseAddrPort("10.0.0.8:2049")
	want := map[netip.AddrPort]bool{server: true}
	m := NewMeter()
	var now []connection
	m.list = func() ([]connection, error) { return now, nil }
	read := func() TCP {
		t.Helper()
		all, err := m.Read(want)
		qt.Assert(t, qt.IsNil(err))
		return all[server]
	}
	now = []connection{{to: server, cookie: 1, rtt: 100, min: 50, segments: 1000, retrans: 10}, {to: other, cookie: 2, segments: 7}}
	qt.Check(t, qt.Equals(read(), TCP{Connections: 1, RTT: 100, MinRTT: 50})) // what was before is not counted
	now[0].segments, now[0].retrans, now[0].unacked = 1100, 12, 3
	now = append(now, connection{to: server, cookie: 3, rtt: 300, min: 40, segments: 5, retrans: 1})
	qt.Check(t, qt.Equals(read(), TCP{Connections: 2, RTT: 200, MinRTT: 40, Segments: 105, Retrans: 3, Unacked: 3, Opened: 1}))
	now = now[2:] // the first has gone, with all it did
	now[0].segments += 10
	qt.Check(t, qt.Equals(read(), TCP{Connections: 1, RTT: 300, MinRTT: 40, Segments: 115, Retrans: 3, Opened: 1}))
	now = nil
	qt.Check(t, qt.Equals(read(), TCP{Segments: 115, Retrans: 3, Opened: 1}))
	want = nil
	qt.Check(t, qt.Equals(read(), TCP{}))
}

// What the kernel says of a connection of this process.
func TestConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	qt.Assert(t, qt.IsNil(err))
	defer c.Close()
	to := netip.MustParseAddrPort(ln.Addr().String())
	m := NewMeter()
	all, err := m.Read(map[netip.AddrPort]bool{to: true})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EPERM) {
		t.Skip("needs inet_diag (CONFIG_INET_DIAG): ", err)
	}
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(all[to].Connections, 1))
	for range 10 {
		_, err = c.Write([]byte("x"))
		qt.Assert(t, qt.IsNil(err))
	}
	all, err = m.Read(map[netip.AddrPort]bool{to: true})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(all[to].Segments > 0 && all[to].RTT > 0), qt.Commentf("%+v", all[to]))
}

func FuzzStat(f *testing.F) {
	f.Add([]byte(statText))
	f.Add([]byte("10 20 3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCPU(b); err == nil && (c.Total < 0 || c.Idle < 0 || c.Idle > c.Total || c.Steal > c.Total) {
			t.Fatal(c)
		}
		if s, err := ParseSched(b); err == nil && (s.Running < 0 || s.RunQueue < 0) {
			t.Fatal(s)
		}
	})
}
