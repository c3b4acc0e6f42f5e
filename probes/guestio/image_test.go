//go:build linux

package guestio

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestDeviceName(t *testing.T) {
	for devid, want := range map[uint32]string{
		51712: "xvda", 51728: "xvdb", 51713: "xvda1", 51952: "xvdp",
		1<<28 | 16<<8: "xvdq", 1<<28 | 26<<8: "xvdaa", 1<<28 | 701<<8 | 3: "xvdzz3", 1<<28 | 702<<8: "xvdaaa",
		768: "xvda", 832: "xvdb", 5632: "xvdc", 5696: "xvdd", 8448: "xvde", 2048: "sda", 2064: "sdb", 51968: "fda",
		0: "", 1: "", 1 << 29: "", 4 << 8: "",
	} {
		qt.Check(t, qt.Equals(deviceName(devid), want), qt.Commentf("%d", devid))
	}
}

func TestPlaceOf(t *testing.T) {
	for path, want := range map[string]place{
		"/dev/VG_XenStorage-" + srUUID + "/VHD-" + vdiUUID:               {srUUID, vdiUUID, "vhd", "lvm"},
		"/dev/VG_XenStorage-" + srUUID + "/LV-" + vdiUUID:                {srUUID, vdiUUID, "aio", "lvm"},
		"/dev/VG_XenStorage-" + srUUID + "/QCOW2-" + vdiUUID:             {srUUID, vdiUUID, "qcow2", "lvm"},
		"/run/sr-mount/" + srUUID + "/" + vdiUUID + ".vhd":               {srUUID, vdiUUID, "vhd", ""},
		"/var/run/sr-mount/" + srUUID + "/" + vdiUUID + ".qcow2":         {srUUID, vdiUUID, "qcow2", ""},
		"/run/sr-mount/" + srUUID + "/" + vdiUUID + ".vhdcache":          {srUUID, vdiUUID, "vhd", ""},
		"/run/sr-mount/SMB/files.lan/" + srUUID + "/" + vdiUUID + ".vhd": {srUUID, vdiUUID, "vhd", "smb"},
		"/run/sr-mount/" + srUUID + "/debian.iso":                        {srUUID, "", "aio", ""},
		"/run/sr-mount/" + srUUID:                                        {srUUID, "", "aio", ""},
		"/dev/sm/backend/" + srUUID + "/" + vdiUUID:                      {srUUID, vdiUUID, "aio", ""},
		"/dev/sm/phy/" + srUUID + "/" + vdiUUID:                          {srUUID, vdiUUID, "aio", ""},
		"/dev/drbd1003":                                                  {"", "", "aio", "linstor"},
		"/run/sr-mount/x/" + vdiUUID + ".vhd":                            {"", "", "vhd", ""},
		"/dev/sm":                                                        {"", "", "aio", ""}, "": {"", "", "aio", ""}, "/run/sr-mount/SMB": {"", "", "aio", ""},
	} {
		qt.Check(t, qt.Equals(placeOf(path), want), qt.Commentf(path))
	}
}

func TestVolume(t *testing.T) {
	vg, lv, ok := volume("VG_XenStorage--" + strings.ReplaceAll(srUUID, "-", "--") + "-VHD--" + strings.ReplaceAll(vdiUUID, "-", "--"))
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(placeOf("/dev/"+vg+"/"+lv), place{srUUID, vdiUUID, "vhd", "lvm"}))
	for _, bad := range []string{"", "36001405", "a--b", "-a", "a-"} {
		_, _, ok := volume(bad)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf(bad))
	}
}

func TestParseDisk(t *testing.T) {
	for text, want := range map[string][2]string{
		`["VDI","` + srUUID + "/" + vdiUUID + `"]`:   {srUUID, vdiUUID},
		`[["VDI","` + srUUID + "/" + vdiUUID + `"]]`: {srUUID, vdiUUID},
		`["VDI","` + srUUID + `/debian.iso"]`:        {srUUID, ""},
		`["Local","/dev/sr0"]`:                       {},
		`[]`:                                         {}, `[[]]`: {}, `{"VDI":1}`: {}, `["VDI",3]`: {}, `["VDI"`: {}, "": {},
	} {
		sr, vdi := parseDisk(text)
		qt.Check(t, qt.Equals([2]string{sr, vdi}, want), qt.Commentf(text))
	}
}

// A logical volume on a multipath device over two iSCSI sessions.
func TestBelow(t *testing.T) {
	sys := t.TempDir()
	dir := func(at string) string {
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Join(sys, at), 0o755)))
		return filepath.Join(sys, at)
	}
	link := func(to, at string) {
		dir(filepath.Dir(at))
		qt.Assert(t, qt.IsNil(os.Symlink(filepath.Join(sys, to), filepath.Join(sys, at))))
	}
	dir("block/dm-1/slaves")
	dir("block/dm-0/slaves")
	link("block/dm-1", "dev/block/253:1")
	link("block/dm-0", "block/dm-1/slaves/dm-0")
	for i, name := range []string{"sdb", "sdc"} {
		at := "devices/platform/host" + name[2:] + "/session" + string(rune('1'+i)) + "/target/block/" + name
		dir(at + "/slaves")
		link(at, "block/dm-0/slaves/"+name)
	}
	link("block/dm-1", "block/dm-0/slaves/loop") // nonsense does not hang it
	for session, addr := range map[string]string{"1": "10.0.0.8", "2": "fe80::8"} {
		at := dir("class/iscsi_connection/connection" + session + ":0")
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "address"), []byte(addr+"\n"), 0o644)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "port"), []byte("3260\n"), 0o644)))
	}
	b := host{sys: sys}.below(device{253, 1})
	qt.Check(t, qt.IsTrue(slices.Equal(b.targets, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.8:3260"), netip.MustParseAddrPort("[fe80::8]:3260")})), qt.Commentf("%v", b.targets))
	qt.Check(t, qt.IsFalse(b.fabric))
	fc := "devices/pci/host3/rport-3:0-1/target/block/sdd"
	dir(fc)
	link(fc, "dev/block/8:48")
	qt.Check(t, qt.IsTrue(host{sys: sys}.below(device{8, 48}).fabric))
	qt.Check(t, qt.HasLen(host{sys: sys}.below(device{9, 9}).targets, 0))
}

func FuzzIdentity(f *testing.F) {
	f.Add("/run/sr-mount/SMB/" + srUUID + "/" + vdiUUID + ".vhd")
	f.Add("/dev/VG_XenStorage-" + srUUID + "/VHD-" + vdiUUID)
	f.Add("VG_XenStorage--a-VHD--b")
	f.Add(`[["VDI","` + srUUID + "/" + vdiUUID + `"]]`)
	f.Add("77 (tapdisk) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1000 0")
	f.Fuzz(func(t *testing.T, s string) {
		p := placeOf(s)
		sr, vdi := parseDisk(s)
		for _, id := range []string{p.sr, p.vdi, sr, vdi} {
			if id != "" && len(id) != 36 {
				t.Fatal(id)
			}
		}
		if vg, lv, ok := volume(s); ok && (vg == "" || lv == "") {
			t.Fatal(s)
		}
		parseStat([]byte(s))
	})
}

func FuzzDeviceName(f *testing.F) {
	f.Add(uint32(51712))
	f.Add(uint32(1<<29 - 1))
	f.Fuzz(func(t *testing.T, devid uint32) {
		if name := deviceName(devid); name != "" && len(name) > len("xvdaaaaa255") {
			t.Fatal(name)
		}
	})
}
