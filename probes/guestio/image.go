//go:build linux

package guestio

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio/stat"
)

// image is a file of a disk's data that its tapdisk has open.
type image struct {
	path  string
	fd    int
	write bool
	on    device // what I/O at it goes to; of a file system without a block device its number, with major 0
	block bool   // on is a block device
}

// Bounds of what is looked at: files of a process, files of a chain. The toolstack
// makes no longer ones than 30.
const (
	maxFiles  = 4096
	maxImages = 64
)

// notImages are where a tapdisk has other files open.
var notImages = []string{"/proc/", "/sys/", "/var/log/", "/run/blktap-control/", "/var/run/blktap-control/", "/run/tapdisk", "/var/run/tapdisk", "/memfd:", "/dev/zero"}

// images returns the files of a tapdisk's chain: first the one that it writes to, the
// leaf, then in the order in which they were opened, in which each is the parent of
// the one before, and how many more there are.
func (h host) images(pid uint32, mounts []stat.Mount) (out []image, more int, err error) {
	at := filepath.Join(h.proc, strconv.FormatUint(uint64(pid), 10))
	dir, err := os.Open(filepath.Join(at, "fd"))
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxFiles)
	for _, n := range names {
		fd, notFD := strconv.Atoi(n)
		link, notLink := os.Readlink(filepath.Join(dir.Name(), n))
		if notFD != nil || notLink != nil || !strings.HasPrefix(link, "/") {
			continue
		}
		link = strings.TrimSuffix(link, " (deleted)")
		if strings.HasPrefix(link, string(h.shm)+"/") || slices.ContainsFunc(notImages, func(p string) bool { return strings.HasPrefix(link, p) }) {
			continue
		}
		im := image{path: cut(link), fd: fd, write: h.writes(at, n)}
		if m := onNetwork(mounts, link); m != nil {
			im.on, _ = parseDevice(m.Dev, 10)
			out = append(out, im)
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir.Name(), n), &st) != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFBLK:
			im.on, im.block = deviceOf(st.Rdev), true
			im.path = h.imageName(link, im.on)
		case unix.S_IFREG:
			im.on = deviceOf(st.Dev)
			im.block = im.on.major != 0
		default:
			continue
		}
		out = append(out, im)
	}
	slices.SortFunc(out, func(a, b image) int {
		if a.write != b.write {
			if a.write {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.fd, b.fd)
	})
	seen := map[string]bool{}
	out = slices.DeleteFunc(out, func(im image) bool { // the same file may be open twice
		again := seen[im.path]
		seen[im.path] = true
		return again
	})
	if len(out) > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	if more = len(out) - maxImages; more > 0 {
		return out[:maxImages], more, err
	}
	return out, 0, err
}

// writes tells whether a file is open for writing.
func (h host) writes(process, fd string) bool {
	b, err := readSome(filepath.Join(process, "fdinfo", fd))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("flags:")); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(string(rest)), 8, 64)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}

// imageName returns the name of an image that is a block device as the storage manager
// has it: that of a logical volume where the link shows a number only.
func (h host) imageName(link string, on device) string {
	if b, err := readSome(filepath.Join(h.sys, "dev/block", on.String(), "dm/name")); err == nil {
		if vg, lv, ok := volume(strings.TrimSpace(string(b))); ok {
			return cut("/dev/" + vg + "/" + lv)
		}
	}
	return cut(link)
}

// onNetwork returns the mount that a file is on, if its files are on another host: such
// a file is not looked at, since that takes for ever while the host does not answer.
func onNetwork(mounts []stat.Mount, path string) *stat.Mount {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok { // a link, as paths of the toolstack have it
		path = "/run/" + rest
	}
	if m := stat.Under(mounts, path); m != nil && m.Network() {
		return m
	}
	return nil
}

func cut(s string) string { return s[:min(len(s), maxText)] }

// volume splits the name of a device mapper target as LVM makes it: a dash between
// group and volume, dashes within them doubled.
func volume(name string) (vg, lv string, ok bool) {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		undouble := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
		return undouble(name[:i]), undouble(name[i+1:]), i > 0 && i+1 < len(name)
	}
	return "", "", false
}

// place is what a path says of where an image is.
type place struct {
	sr, vdi string // uuids
	kind    string // vhd, qcow2, aio
	family  string // of the repository, as far as the path says: lvm, linstor
}

// placeOf reads the paths that the storage manager makes.
func placeOf(path string) (p place) {
	name := filepath.Base(path)
	switch {
	case strings.HasPrefix(name, "VHD-"), strings.HasSuffix(name, ".vhd"), strings.HasSuffix(name, ".vhdcache"):
		p.kind = "vhd"
	case strings.HasPrefix(name, "QCOW2-"), strings.HasSuffix(name, ".qcow2"):
		p.kind = "qcow2"
	default:
		p.kind = "aio"
	}
	switch {
	case strings.HasPrefix(path, "/dev/VG_XenStorage-"):
		p.family = "lvm"
	case strings.HasPrefix(path, "/dev/drbd"):
		p.family = "linstor"
	case strings.Contains(path, "/sr-mount/SMB/"):
		p.family = "smb"
	}
	sr, vdi := event.ParseImage([]byte(path))
	p.sr, p.vdi = string(sr), string(vdi)
	return p
}
