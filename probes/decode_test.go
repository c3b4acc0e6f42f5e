//go:build linux

package probes

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

var update = flag.Bool("update", false, "write the golden file")

// record lays out one record: the struct, then the payload, with Size set.
func record(t testing.TB, v any, payload string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
		t.Fatal(err)
	}
	b.WriteString(payload)
	raw := b.Bytes()
	binary.LittleEndian.PutUint32(raw[16:], uint32(len(raw)))
	return raw
}

func hdr(k bpf.Kind, flags uint16) bpf.Hdr {
	return bpf.Hdr{Ktime: 1_000_000_001, TGID: 4242, TID: 4243, Seq: 7, Kind: k, Flags: flags, CPU: 3, Component: uint8(event.Xapi), Version: bpf.WireVersion}
}

func arg(s string) (a [bpf.ExecArgLen]uint8) {
	copy(a[:], s)
	return a
}

func execRec(file string, args ...string) bpf.ExecRec {
	x := bpf.ExecRec{Hdr: hdr(bpf.KindExec, 0), Filename: arg(file)}
	for i, a := range args {
		x.Arg[i] = arg(a)
	}
	return x
}

// records has one of each kind, and variants.
func records(t testing.TB) map[string][]byte {
	v4 := netip.MustParseAddr("::ffff:10.0.0.1").As16()
	v6 := netip.MustParseAddr("fe80::1").As16()
	peer := [16]uint8{0x61, 0, 0, 0, 0, 0, 0, 0, 0x39, 0x05}
	const xml = `<?xml version="1.0"?><methodCall><methodName>vdi_attach</methodName><params><param><value>OpaqueRef:secret`
	const sr, vdi = "f0e1d2c3-0000-4000-8000-00000000aaaa", "01234567-89ab-4cde-8f01-23456789abcd"
	return map[string][]byte{
		"data":          record(t, bpf.DataRec{Hdr: hdr(bpf.KindData, bpf.FlagMore), Born: 5, Ino: 99, First: 10, Last: 20, Bytes: 13, FD: 18, Calls: 48, HeadLen: 13, Dir: bpf.DirIn}, "POST / HTTP/1"),
		"data cut":      record(t, bpf.DataRec{Hdr: hdr(bpf.KindData, bpf.FlagCut), Born: 5, Bytes: 1 << 40, FD: 18, Calls: 1, HeadLen: 4, TailLen: 3, Dir: bpf.DirOut}, "headend"),
		"data bulk":     record(t, bpf.DataRec{Hdr: hdr(bpf.KindData, bpf.FlagCut|bpf.FlagMore), Bytes: 70000, Calls: 2, Dir: bpf.DirOut}, ""),
		"log":           record(t, bpf.LogRec{Hdr: hdr(bpf.KindLog, 0), Bytes: 2000, HeadLen: 5}, "<175>"),
		"open unix":     record(t, bpf.OpenRec{Hdr: hdr(bpf.KindOpen, 0), Born: 6, Ino: 98, FD: 18, ListenFD: 5, How: bpf.HowAccepted, Family: 1, Peer: peer}, ""),
		"open v4":       record(t, bpf.OpenRec{Hdr: hdr(bpf.KindOpen, 0), Born: 6, FD: 19, ListenFD: 3, How: bpf.HowAccepted, Family: 10, PeerPort: 44312, Peer: v4}, ""),
		"open v6":       record(t, bpf.OpenRec{Hdr: hdr(bpf.KindOpen, 0), Born: 6, FD: 19, ListenFD: -1, How: bpf.HowConnected, Family: 10, PeerPort: 80, Peer: v6}, ""),
		"close":         record(t, bpf.CloseRec{Hdr: hdr(bpf.KindClose, 0), Born: 6, FD: 18}, ""),
		"fork":          record(t, bpf.ForkRec{Hdr: hdr(bpf.KindFork, bpf.FlagThread), ChildTGID: 4242, ChildTID: 4300}, ""),
		"exec":          record(t, execRec("/usr/sbin/xenguest", "-controloutfd", "5"), ""),
		"exec sm":       record(t, execRec("/opt/xensource/sm/LVMSR", xml), ""),
		"exec observed": record(t, execRec("/usr/bin/python3", "-m", "observer", "/opt/xensource/sm/NFSSR", xml), ""),
		"exec helper":   record(t, execRec("/usr/libexec/xapi/vfork_helper", "-e", "7", "--", "/opt/xensource/sm/LVMSR", xml), ""),
		"exec coalesce": record(t, execRec("/usr/bin/vhd-util", "coalesce", "-n", "/dev/VG_XenStorage-"+sr+"/VHD-"+vdi), ""),
		"exec cleanup":  record(t, execRec("/usr/bin/python3", "/opt/xensource/sm/cleanup.py", "-u", sr, "-g"), ""),
		"request": record(t, bpf.RequestRec{
			Hdr: hdr(bpf.KindRequest, 0), First: 100, Last: 900, Layer: [bpf.NumLayers]uint64{800, 50, 50, 0, 100, 50, 50, 450, 50},
			Offset: 1 << 33, Bytes: 45056, IOs: 2, Flags: bpf.RequestWrite | bpf.RequestSlow | bpf.RequestMerged | bpf.RequestFailed | bpf.RequestUnsplit,
		}, ""),
		"exit": record(t, bpf.ExitRec{Hdr: hdr(bpf.KindExit, bpf.FlagLeader), CPUNs: 12345, Code: 256}, ""),
		"time": record(t, bpf.TimeRec{Hdr: hdr(bpf.KindTime, 0), First: 100, Last: 200, Spent: [16]uint64{event.OnCPU: 60, event.RunQueue: 40}}, ""),
		"long wait": record(t, bpf.TimeRec{
			Hdr: hdr(bpf.KindTime, 0), First: 100, Last: 5_000_200, Spent: [16]uint64{event.RunQueue: 100, event.Hypercall: 5_000_000},
			Runnable: 5_000_100, Detail: 36 | 1<<32, NR: 16, Wait: uint8(event.Hypercall),
		}, ""),
	}
}

// TestDecode compares with testdata/events.json, which was looked over.
func TestDecode(t *testing.T) {
	got := map[string]event.Event{}
	text := map[string][2]string{}
	var d Decoder
	for name, raw := range records(t) {
		var e event.Event
		qt.Assert(t, qt.IsNil(d.Decode(&e, raw)), qt.Commentf(name))
		text[name] = [2]string{string(e.Head), string(e.Tail)}
		e.Head, e.Tail = nil, nil
		got[name] = e
	}
	qt.Check(t, qt.Equals(text["data"], [2]string{"POST / HTTP/1", ""}))
	qt.Check(t, qt.Equals(text["data cut"], [2]string{"head", "end"}))
	qt.Check(t, qt.Equals(text["log"], [2]string{"<175>", ""}))
	b, err := json.MarshalIndent(got, "", "\t")
	qt.Assert(t, qt.IsNil(err))
	b = append(b, '\n')
	const golden = "testdata/events.json"
	if *update {
		qt.Assert(t, qt.IsNil(os.WriteFile(golden, b, 0o644)))
	}
	want, err := os.ReadFile(golden)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(b), string(want)))
}

// TestWireContract compares sizes and offsets with the structs of package bpf.
func TestWireContract(t *testing.T) {
	for _, c := range []struct {
		v    any
		size int
	}{
		{bpf.Hdr{}, sizeHdr}, {bpf.DataRec{}, sizeData}, {bpf.LogRec{}, sizeLog}, {bpf.OpenRec{}, sizeOpen},
		{bpf.CloseRec{}, sizeClose}, {bpf.ForkRec{}, sizeFork}, {bpf.ExecRec{}, sizeExec}, {bpf.ExitRec{}, sizeExit},
		{bpf.TimeRec{}, sizeTime}, {bpf.RequestRec{}, sizeRequest},
	} {
		qt.Check(t, qt.Equals(binary.Size(c.v), c.size), qt.Commentf("%T", c.v))
	}
	raw := record(t, bpf.OpenRec{Hdr: hdr(bpf.KindOpen, 0), ListenFD: -1, How: bpf.HowSeeded}, "")
	qt.Check(t, qt.Equals(listenFD(raw), -1))
}

func TestDecodeErrors(t *testing.T) {
	good := records(t)
	for name, raw := range good {
		for n := range raw {
			var e event.Event
			var d Decoder
			qt.Assert(t, qt.ErrorIs(d.Decode(&e, raw[:n]), event.ErrRecord), qt.Commentf("%s, %d bytes", name, n))
		}
	}
	edit := func(name string, at int, b ...byte) []byte {
		raw := bytes.Clone(good[name])
		copy(raw[at:], b)
		return raw
	}
	for what, raw := range map[string][]byte{
		"version":     edit("data", 31, 2),
		"kind 0":      edit("data", 24, 0),
		"kind 8":      edit("data", 24, 8),
		"kind 65535":  edit("data", 24, 255, 255),
		"size":        edit("data", 16, 200, 0),
		"size 0":      edit("data", 16, 0),
		"component":   edit("data", 30, 200),
		"direction":   edit("data", 84, 3),
		"head length": edit("data", 80, 255, 255),
		"tail length": edit("data", 82, 1),
		"bytes":       edit("data", 64, 12),
		"log length":  edit("log", 36, 6),
		"how":         edit("open unix", 56, 0),
		"CPU time":    edit("exit", 39, 255),
		"layer":       edit("request", 48+8, 51),
		"total":       edit("request", 48, 33, 3),
		"end":         edit("request", 40, 33, 3),
	} {
		var e event.Event
		var d Decoder
		qt.Check(t, qt.ErrorIs(d.Decode(&e, raw), event.ErrRecord), qt.Commentf(what))
	}
}

// TestDecodeComponents takes every component of the table, and none besides.
func TestDecodeComponents(t *testing.T) {
	raw := records(t)["data"]
	for n := range 256 {
		raw[30] = byte(n)
		var e event.Event
		var d Decoder
		if c := event.Component(n); c == event.NoComponent || event.AllComponents.Has(c) && n < 64 {
			qt.Check(t, qt.IsNil(d.Decode(&e, raw)))
			qt.Check(t, qt.Equals(e.Component, c))
		} else {
			qt.Check(t, qt.ErrorIs(d.Decode(&e, raw), event.ErrRecord), qt.Commentf("%d", n))
		}
	}
}

// TestExecObjects: no other uuid of the arguments gets out than those of a
// repository and an image.
func TestExecObjects(t *testing.T) {
	const sr, vdi = "f0e1d2c3-0000-4000-8000-00000000aaaa", "01234567-89ab-4cde-8f01-23456789abcd"
	for _, c := range []struct {
		file    string
		args    []string
		sr, vdi string
	}{
		{"/usr/bin/vhd-util", []string{"coalesce", "-n", "/run/sr-mount/" + sr + "/" + vdi + ".vhd"}, sr, vdi},
		{"/usr/libexec/xapi/sparse_dd", []string{"-src", "/dev/sm/backend/" + sr + "/" + vdi, "-dest", "/x"}, sr, vdi},
		{"/opt/xensource/sm/cleanup.py", []string{"-u", sr}, sr, ""},
		{"/usr/bin/vhd-util", []string{"-u", sr}, "", ""},
		{"/opt/xensource/sm/cleanup.py", []string{"-x", sr}, "", ""},
		{"/opt/xensource/sm/LVMSR", []string{"<member><name>session_ref</name><value>OpaqueRef:" + sr}, "", ""},
		{"/usr/bin/curl", []string{"--cookie", "session_id=" + sr, "pool_secret=" + sr + "/" + vdi + "/" + vdi, sr + "/" + vdi}, "", ""},
	} {
		var e event.Event
		var d Decoder
		qt.Assert(t, qt.IsNil(d.Decode(&e, record(t, execRec(c.file, c.args...), ""))))
		qt.Check(t, qt.Equals([2]string{e.SR, e.VDI}, [2]string{c.sr, c.vdi}), qt.Commentf("%s %q", c.file, c.args))
	}
}

func TestExecNames(t *testing.T) {
	for _, c := range []struct {
		file               string
		args               []string
		program, operation string
	}{
		{"/opt/xensource/sm/LVMSR", []string{"<methodCall><methodName>sr_scan</methodName>"}, "LVMSR", "sr_scan"},
		{"/opt/xensource/sm/LVMSR", []string{"<methodCall><methodName>a b</methodName>"}, "LVMSR", ""},
		{"/opt/xensource/sm/LVMSR", []string{"<methodCall><methodName>cut"}, "LVMSR", ""},
		{"/opt/xensource/sm/LVMSR", []string{"<methodCall><methodName></methodName>"}, "LVMSR", ""},
		{"python3", []string{"-m", "observer"}, "python3", ""},
		{"/usr/bin/python3.9", []string{"-u", "-m", "observer", "/x/EXTSR"}, "EXTSR", ""},
		{"/usr/bin/perl", []string{"-m", "observer", "/x/EXTSR"}, "perl", ""},
		{"", nil, "", ""},
		{"/", nil, "", ""},
		{"/a\nb", nil, "", ""},
	} {
		var e event.Event
		var d Decoder
		qt.Assert(t, qt.IsNil(d.Decode(&e, record(t, execRec(c.file, c.args...), ""))))
		qt.Check(t, qt.Equals(e.Program, c.program))
		qt.Check(t, qt.Equals(e.Operation, c.operation))
	}
}

func TestDecodeAllocations(t *testing.T) {
	var d Decoder
	var e event.Event
	for name, raw := range records(t) {
		if n := testing.AllocsPerRun(100, func() { _ = d.Decode(&e, raw) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, raw := range records(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d Decoder
		var e event.Event
		if err := d.Decode(&e, raw); err != nil {
			return
		}
		if uint64(len(e.Head)+len(e.Tail)) > e.Bytes && e.Kind <= event.KindLog {
			t.Errorf("%d and %d bytes of %d", len(e.Head), len(e.Tail), e.Bytes)
		}
		listenFD(append(raw, make([]byte, sizeOpen)...))
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, raw := range records(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var d Decoder
			var e event.Event
			for range b.N {
				if err := d.Decode(&e, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
