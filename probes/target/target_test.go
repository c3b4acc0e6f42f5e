//go:build linux

package target

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		want    event.Components
		program string
		is      event.Component
		watch   bpf.Watch
	}{
		{event.Of(event.Xapi), "xapi", event.Xapi, everything},
		{event.Of(event.SMAPI), "xapi", event.Xapi, bpf.WatchProcess},
		{event.Of(event.SMAPI, event.Xapi), "xapi", event.Xapi, everything},
		{event.Of(event.SMAPI), "xapi-storage-script", event.SMAPI, everything},
		{event.Of(event.Xenopsd), "xapi", event.NoComponent, 0},
		{event.Of(event.Xenopsd), "xenopsd-xc", event.Xenopsd, everything},
		{event.Of(event.Xenopsd), "xenopsd-simulator", event.Xenopsd, everything},
		{event.AllComponents, "xapi-clusterd", event.XapiClusterd, everything},
		{event.AllComponents, "message-switch", event.MessageSwitch, bpf.WatchStream},
		{event.DefaultComponents(), "message-switch", event.NoComponent, 0},
		{event.Of(event.Xenguest), "xenopsd-xc", event.Xenopsd, bpf.WatchProcess},
		{event.Of(event.Xenguest, event.Xenopsd), "xenopsd-xc", event.Xenopsd, everything},
		{event.Of(event.Xenguest), "forkexecd", event.Forkexecd, bpf.WatchProcess},
		{event.Of(event.Xenopsd), "forkexecd", event.Forkexecd, bpf.WatchStream | bpf.WatchProcess},
		{event.Of(event.Networkd), "forkexecd", event.Forkexecd, bpf.WatchStream | bpf.WatchProcess},
		{event.Of(event.Squeezed), "forkexecd", event.NoComponent, 0},
		{event.Of(event.Tapdisk, event.Xenstored), "xapi", event.NoComponent, 0},
		{event.Of(event.Squeezed), "squeezed", event.Squeezed, everything},
		{0, "xapi", event.NoComponent, 0},
	} {
		is, watch := Plan(c.want, c.program)
		qt.Check(t, qt.Equals(is, c.is), qt.Commentf("%s for %s", c.program, c.want))
		qt.Check(t, qt.Equals(watch, c.watch), qt.Commentf("%s for %s", c.program, c.want))
	}
	qt.Check(t, qt.Equals(Watches(0), 0))
	qt.Check(t, qt.Equals(Watches(event.Of(event.Xapi)), everything))
}

func TestProgramOf(t *testing.T) {
	for _, c := range [][4]string{ // comm, exe, first argument, program
		{"xapi", "xapi", "/opt/xensource/bin/xapi", "xapi"},
		{"xapi-storage-sc", "xapi-storage-script", "", "xapi-storage-script"},
		{"xapi-storage-sc", "ld-linux.so.2", "/usr/sbin/xapi-storage-script", "xapi-storage-script"},
		{"xapi-storage-sc", "python3", "python3", ""},
		{"xenopsd-simulat", "xenopsd-simulator", "", "xenopsd-simulator"},
		{"xenopsd-xc", "xenopsd-xc", "", "xenopsd-xc"},
		{"xapi", "bash", "xapi-wrapper", ""},
		{"xapi-nbd", "xapi-nbd", "/usr/sbin/xapi-nbd", ""},
		{"grep", "grep", "xapi", ""},
		{"xapi", "", "", ""},
	} {
		qt.Check(t, qt.Equals(programOf(c[0], c[1], c[2]), c[3]), qt.Commentf("%q", c))
	}
}

func TestIsSM(t *testing.T) {
	dirs := []string{"/opt/xensource/sm", "/x"}
	for p, want := range map[string]bool{
		"/opt/xensource/sm/LVMSR": true, "/x/NFSSR": true, "/opt/xensource/sm/SR": true,
		"/opt/xensource/sm/LVMSR.py": false, "/opt/xensource/sm/a/LVMSR": false, "/y/LVMSR": false, "LVMSR": false, "": false,
	} {
		qt.Check(t, qt.Equals(IsSM([]byte(p), dirs), want), qt.Commentf(p))
	}
	b := []byte("/opt/xensource/sm/LVMSR")
	qt.Check(t, qt.Equals(testing.AllocsPerRun(100, func() { IsSM(b, dirs) }), 0))
}

func TestParseStat(t *testing.T) {
	tail := " S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 30 0 987654 1 2"
	for in, want := range map[string]stat{
		"42 (xapi)" + tail:             {"xapi", 7, 987654},
		"42 (a) b (c))" + tail:         {"a) b (c)", 7, 987654},
		"42 ()" + tail:                 {"", 7, 987654},
		"42 (xapi) Z" + tail[2:]:       {},
		"42 (xapi":                     {},
		"42 )xapi(" + tail:             {},
		"42 (xapi) S 7 1":              {},
		"42 (xapi) S x" + tail[4:]:     {},
		"":                             {},
		"42 (x) S 99999999999 1 1 0 1": {},
	} {
		s, ok := parseStat([]byte(in))
		qt.Check(t, qt.Equals(s, want), qt.Commentf("%q", in))
		qt.Check(t, qt.Equals(ok, want.start != 0), qt.Commentf("%q", in))
	}
}

func FuzzParse(f *testing.F) {
	f.Add("42 (xapi) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 30 0 987654 1 2")
	f.Add("0000000000000000: 00000002 00000000 00010000 0001 01 12345 /var/lib/xcp/xapi")
	f.Add("\x01\x01\x01\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00/a\x00\x00\x08\x00\x02\x00\x11\x00\x00\x00")
	f.Add("  0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1")
	f.Fuzz(func(t *testing.T, line string) {
		parseStat([]byte(line))
		parseUnix(strings.Fields(line))
		parseTCP(strings.Fields(line))
		parseDiag([]byte(line))
	})
}

func TestParseSockets(t *testing.T) {
	for line, want := range map[string]Socket{
		"0000000000000000: 00000002 00000000 00010000 0001 01 704718 /var/lib/xcp/xapi": {Ino: 704718, Listening: true, Local: "/var/lib/xcp/xapi"},
		"0000000000000000: 00000003 00000000 00000000 0001 03 709749 /a b":              {Ino: 709749, Local: "/a b"},
		"0000000000000000: 00000003 00000000 00000000 0001 03 704721":                   {Ino: 704721},
		"0000000000000000: 00000003 00000000 00000000 0002 01 704717 /dev/log":          {},
		"Num       RefCount Protocol Flags    Type St Inode Path":                       {},
		"0: 1": {},
	} {
		s, _ := parseUnix(strings.Fields(line))
		qt.Check(t, qt.Equals(s, want), qt.Commentf(line))
	}
	for line, want := range map[string]Socket{
		"0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1":                   {Ino: 4711, Listening: true, Local: "127.0.0.1:80"},
		"1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4712": {Ino: 4712, Listening: true, Local: "[::]:80"},
		"2: 0000000000000000FFFF00000100000A:0050 0000000000000000FFFF00000200000A:1234 01 0:0 00:0 0 0 0 4713": {Ino: 4713, Local: "[::ffff:10.0.0.1]:80"},
		"3: 0100007F:0050 0100007F:1234 06 0:0 03:0 0 0 0 0":                                                    {},
		"4: 0100007F:XX50 0100007F:1234 01 0:0 03:0 0 0 0 5":                                                    {Ino: 5},
	} {
		s, _ := parseTCP(strings.Fields(line))
		qt.Check(t, qt.Equals(s, want), qt.Commentf(line))
	}
}

// fakeProc is a proc file system in a folder.
type fakeProc struct {
	t    *testing.T
	root string
}

func (f fakeProc) process(tgid, parent uint32, start uint64, comm, exe, cmdline string) {
	f.t.Helper()
	dir := fmt.Sprintf("%s/%d", f.root, tgid)
	qt.Assert(f.t, qt.IsNil(os.RemoveAll(dir)))
	qt.Assert(f.t, qt.IsNil(os.MkdirAll(dir+"/fd", 0o755)))
	qt.Assert(f.t, qt.IsNil(os.MkdirAll(dir+"/net", 0o755)))
	stat := fmt.Sprintf("%d (%s) S %d 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 30 0 %d 1 2", tgid, comm, parent, start)
	qt.Assert(f.t, qt.IsNil(os.WriteFile(dir+"/stat", []byte(stat), 0o644)))
	qt.Assert(f.t, qt.IsNil(os.WriteFile(dir+"/cmdline", []byte(cmdline), 0o644)))
	if exe != "" {
		qt.Assert(f.t, qt.IsNil(os.Symlink(exe, dir+"/exe")))
	}
}

func (f fakeProc) end(tgid uint32) { os.RemoveAll(fmt.Sprintf("%s/%d", f.root, tgid)) }

func TestScan(t *testing.T) {
	f := fakeProc{t, t.TempDir()}
	qt.Assert(t, qt.IsNil(os.WriteFile(f.root+"/uptime", nil, 0o644)))
	f.process(100, 1, 5000, "xapi", "/opt/xensource/bin/xapi", "/opt/xensource/bin/xapi\x00-nowatchdog\x00")
	f.process(101, 100, 9000, "xapi", "/opt/xensource/bin/xapi", "") // about to execute
	f.process(200, 1, 5001, "xenopsd-xc", "/usr/sbin/xenopsd-xc (deleted)", "")
	f.process(300, 1, 5002, "xapi-storage-sc", "/usr/bin/ocamlrun", "/usr/sbin/xapi-storage-script\x00")
	f.process(400, 1, 5003, "bash", "/bin/bash", "bash\x00xapi\x00")
	f.process(500, 1, 1, "kworker/0:1", "", "")
	w := NewWatcher(Options{Proc: f.root, Interval: 20 * time.Millisecond})
	xapi, xenopsd := Process{100, 5000, "xapi"}, Process{200, 5001, "xenopsd-xc"}
	storage := Process{300, 5002, "xapi-storage-script"}
	scan := func(want ...Process) {
		t.Helper()
		got, err := w.Scan()
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.DeepEquals(got, want))
	}
	scan(xapi, xenopsd, storage)
	time.Sleep(15 * time.Millisecond)
	scan(xapi, Process{101, 9000, "xapi"}, xenopsd, storage) // it stays: a watchdog's child
	f.end(200)
	f.process(100, 1, 7000, "xapi", "/opt/xensource/bin/xapi", "") // the pid has another user
	scan(Process{100, 7000, "xapi"}, Process{101, 9000, "xapi"}, storage)
	qt.Check(t, qt.IsFalse(w.Proc().Is(100, 5000)))
	qt.Check(t, qt.IsTrue(w.Proc().Is(100, 7000)))
	qt.Check(t, qt.IsFalse(w.Proc().Exists(200)))
	_, err := NewWatcher(Options{Proc: f.root + "/none"}).Scan()
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestSocketsOfFake(t *testing.T) {
	f := fakeProc{t, t.TempDir()}
	f.process(100, 1, 5000, "xapi", "/xapi", "")
	dir := f.root + "/100"
	for fd, to := range map[string]string{"3": "socket:[11]", "4": "socket:[12]", "5": "pipe:[13]", "6": "/dev/null", "7": "socket:[14]", "x": "socket:[11]", "8": "socket:[x]"} {
		qt.Assert(t, qt.IsNil(os.Symlink(to, dir+"/fd/"+fd)))
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(dir+"/net/unix", []byte("Num       RefCount Protocol Flags    Type St Inode Path\n"+
		"0: 2 0 00010000 0001 01 11 /var/lib/xcp/xapi\n0: 3 0 0 0001 03 12\n0: 3 0 0 0002 01 14 /dev/log\n"), 0o644)))
	got, err := NewProc(f.root).Sockets(100)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.ContentEquals(got, []Socket{{FD: 3, Ino: 11, Listening: true, Local: "/var/lib/xcp/xapi"}, {FD: 4, Ino: 12}}))
	qt.Check(t, qt.Equals(NewProc(f.root).Local(100, 3), "/var/lib/xcp/xapi"))
	qt.Check(t, qt.Equals(NewProc(f.root).Local(100, 99), ""))
	_, err = NewProc(f.root).Sockets(101)
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

// TestSocketsOfSelf compares with sockets that this process really has.
func TestSocketsOfSelf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	unixLn, err := net.Listen("unix", path)
	qt.Assert(t, qt.IsNil(err))
	defer unixLn.Close()
	tcpLn, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	defer tcpLn.Close()
	c, err := net.Dial("unix", path)
	qt.Assert(t, qt.IsNil(err))
	defer c.Close()
	served, err := unixLn.Accept()
	qt.Assert(t, qt.IsNil(err))
	defer served.Close()

	got, err := NewProc("").Sockets(uint32(os.Getpid()))
	qt.Assert(t, qt.IsNil(err))
	find := func(local string, listening bool) (found Socket, n int) {
		for _, s := range got {
			if s.Local == local && s.Listening == listening {
				found, n = s, n+1
			}
		}
		return found, n
	}
	_, n := find(path, true)
	qt.Check(t, qt.Equals(n, 1))
	_, n = find(path, false) // the accepted one has the listener's name
	qt.Check(t, qt.Equals(n, 1))
	_, n = find(tcpLn.Addr().String(), true)
	qt.Check(t, qt.Equals(n, 1))

	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path + "d", Net: "unixgram"}) // other kinds are no obstacle
	qt.Assert(t, qt.IsNil(err))
	defer gram.Close()
	clients, err := Clients(path)
	if err != nil && strings.Contains(err.Error(), "no such file") {
		t.Skip("needs unix_diag")
	}
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(clients, 1))
	dialled := 0
	for _, s := range got {
		if clients[s.Ino] {
			dialled++
			qt.Check(t, qt.Equals(s.Local, ""))
		}
	}
	qt.Check(t, qt.Equals(dialled, 1))
}

func TestBoundTo(t *testing.T) {
	qt.Check(t, qt.IsTrue(boundTo("/var/run/message-switch/sock", SwitchPath)))
	qt.Check(t, qt.IsTrue(boundTo("/run/message-switch/sock", SwitchPath)))
	qt.Check(t, qt.IsFalse(boundTo("", SwitchPath)))
}

// TestExecs sees the exec of a real child by the proc connector.
func TestExecs(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := make(chan uint32, 1000)
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- execs(ctx, func() { close(ready) }, func(tgid uint32) { seen <- tgid }) }()
	select {
	case err := <-ended:
		t.Skip("needs the proc connector (CAP_NET_ADMIN in the first name spaces): " + err.Error())
	case <-ready:
	}
	cmd := exec.Command("/bin/true")
	qt.Assert(t, qt.IsNil(cmd.Run()))
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case tgid := <-seen:
			if tgid != uint32(cmd.Process.Pid) {
				continue
			}
		case <-timeout:
			t.Fatal("exec not seen")
		}
		break
	}
	cancel()
	select {
	case err := <-ended:
		qt.Check(t, qt.IsNil(err))
	case <-time.After(2 * time.Minute):
		t.Fatal("does not end with its context")
	}
}

func BenchmarkScan(b *testing.B) {
	w := NewWatcher(Options{})
	n, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := w.Scan(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(n)), "processes")
}
