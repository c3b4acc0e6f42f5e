//go:build linux

// Package guestio knows the disks of the guests, by xenstore, and what I/O they do,
// by the probe bpf.Disk. docs/io.md says what is seen and what is not.
package guestio

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/xenstore"
)

// Kinds of disk backends, by their names in xenstore.
const (
	Blkback = "vbd"   // a kernel thread for each disk
	Qdisk   = "qdisk" // a QEMU for each guest
	Tapdisk = "vbd3"  // a tapdisk for each disk
)

var kinds = []string{Blkback, Qdisk, Tapdisk}

// backends is where those of this domain are, and maxVBDs how many of them are
// looked at; maxText is how much of a text from xenstore is kept.
const (
	backends = "/local/domain/0/backend"
	maxVBDs  = 4096
	maxText  = 512
)

// key is which disk it is. Another guest may get it later.
type key struct {
	domid, devid uint32
	kind         string
}

func (k key) path() string { return fmt.Sprintf("%s/%s/%d/%d", backends, k.kind, k.domid, k.devid) }

// vbd is a disk as xenstore has it.
type vbd struct {
	key
	domain   string // name of the guest
	uuid     string // of the VM
	device   string // name in the guest
	mode     string
	params   string
	physical string // physical-device: major:minor, hexadecimal
	pid      uint32 // of tapdisk, 0: not known
	vdi, sr  string // uuids
	storage  string // what the storage manager says of the repository: nfs, lvm, ext, smb
	polls    int64  // for how many µs its tapdisk looks at the ring again and again while dom0 is idle enough; 0: it does not
	idle     int64  // how idle, in %
	qemu     uint32 // process that emulates devices for the guest, 0: none that is known
}

// parseKey returns the disk that a path in xenstore belongs to.
func parseKey(p string) (k key, ok bool) {
	rest, ok := strings.CutPrefix(p, backends+"/")
	w := strings.SplitN(rest, "/", 4)
	if !ok || len(w) < 3 || !slices.Contains(kinds, w[0]) {
		return k, false
	}
	domid, err1 := strconv.ParseUint(w[1], 10, 16)
	devid, err2 := strconv.ParseUint(w[2], 10, 32)
	return key{kind: w[0], domid: uint32(domid), devid: uint32(devid)}, err1 == nil && err2 == nil
}

// listVBDs returns the disks that there are, and how many more there are than are
// looked at.
func listVBDs(ctx context.Context, c *xenstore.Client) (out []key, more int, err error) {
	for _, kind := range kinds {
		domids, err := c.Directory(ctx, path.Join(backends, kind))
		if err != nil {
			return nil, 0, err
		}
		for _, domid := range domids {
			at := path.Join(backends, kind, domid)
			devids, err := c.Directory(ctx, at)
			if err != nil {
				return nil, 0, err
			}
			for _, devid := range devids {
				switch k, ok := parseKey(at + "/" + devid); {
				case !ok:
				case len(out) >= maxVBDs:
					more++
				default:
					out = append(out, k)
				}
			}
		}
	}
	return out, more, nil
}

// readVBD reads a disk. ok is false when there is none.
func readVBD(ctx context.Context, c *xenstore.Client, k key) (v vbd, ok bool, err error) {
	v.key = k
	names, err := c.Directory(ctx, k.path())
	if err != nil || len(names) == 0 {
		return v, false, err
	}
	read := func(at string) string {
		text, e := c.Optional(ctx, at)
		err = errors.Join(err, e)
		return text[:min(len(text), maxText)]
	}
	at := func(name string) string {
		if first, _, _ := strings.Cut(name, "/"); !slices.Contains(names, first) {
			return ""
		}
		return read(k.path() + "/" + name)
	}
	v.device = strings.TrimPrefix(at("dev"), "/dev/") // as blkback takes it
	v.mode, v.params = at("mode"), at("params")
	v.physical = at("physical-device")
	if k.kind == Tapdisk {
		pid, _ := strconv.ParseUint(at("kthread-pid"), 10, 31)
		v.pid = uint32(pid)
		v.polls, _ = strconv.ParseInt(at("polling-duration"), 10, 32)
		v.idle, _ = strconv.ParseInt(at("polling-idle-threshold"), 10, 32)
	}
	v.vdi = valid(at("sm-data/vdi-uuid"))
	v.storage = at("sm-data/storage-type")
	sr, vdi := parseDisk(at("vdi"))
	home := fmt.Sprintf("/local/domain/%d", k.domid)
	v.domain = read(home + "/name")
	if vm := read(home + "/vm"); vm != "" {
		v.uuid = path.Base(vm)
	}
	if sr == "" && valid(v.uuid) != "" { // xenopsd keeps what the disk was made of
		sr, vdi = parseDisk(read(fmt.Sprintf("/xapi/%s/private/%s/%d/vdi-id", v.uuid, k.kind, k.devid)))
	}
	v.sr, v.vdi = sr, cmp.Or(v.vdi, vdi)
	qemu, _ := strconv.ParseUint(read(home+"/qemu-pid"), 10, 31)
	v.qemu = uint32(qemu)
	return v, err == nil, err
}

// valid returns s if it is a uuid.
func valid(s string) string {
	if event.IsUUID([]byte(s)) {
		return s
	}
	return ""
}

// parseDisk parses what xenopsd remembers of a disk, ["VDI","<repository>/<disk>"],
// perhaps in a list. It returns what of it are uuids.
func parseDisk(text string) (sr, vdi string) {
	var v any
	if json.Unmarshal([]byte(text), &v) != nil {
		return "", ""
	}
	list, _ := v.([]any)
	if len(list) == 1 {
		list, _ = list[0].([]any)
	}
	if len(list) != 2 || list[0] != "VDI" {
		return "", ""
	}
	name, _ := list[1].(string)
	sr, vdi, _ = strings.Cut(name, "/")
	return valid(sr), valid(vdi)
}

// name is what a disk is called to a reader.
func (v *vbd) name() string {
	return cmp.Or(v.guestName(), strconv.FormatUint(uint64(v.devid), 10))
}

// guestName is its name in the guest, "" if that is not known.
func (v *vbd) guestName() string { return cmp.Or(v.device, deviceName(v.devid)) }
