//go:build linux

package guestio

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio/stat"
)

// whose is whose a disk is and where its data are.
type whose struct {
	guest   *event.GuestDisk
	mount   string           // mount point of the network file system that they are on
	servers []netip.AddrPort // where they go by TCP
}

// served is what readers of records ask for.
type served struct {
	disk  *event.GuestDisk
	usual [2]int64
}

// DiskOf returns whose disk a tapdisk serves, nil if that is not known or nobody has
// the disks watched. It waits for nobody.
func (p *Probe) DiskOf(tgid uint32) *event.GuestDisk {
	known := p.known.Load()
	if known == nil {
		return nil
	}
	return (*known)[tgid].disk
}

// Usual returns what 99 of 100 requests to the disk of a tapdisk usually take at most,
// in ns; 0 if that is not learned. It waits for nobody.
func (p *Probe) Usual(tgid uint32, write bool) int64 {
	known := p.known.Load()
	if known == nil {
		return 0
	}
	op := 0
	if write {
		op = 1
	}
	return (*known)[tgid].usual[op]
}

// publish has DiskOf and Usual tell what is known now. It needs mu.
func (p *Probe) publish() {
	known := make(map[uint32]served, len(p.disks))
	for _, d := range p.disks {
		if d.tap == nil {
			continue
		}
		s := served{disk: d.whose.guest}
		for op := range s.usual {
			s.usual[op] = d.usual.ops[op].p99.Nanoseconds()
		}
		known[d.tap.TGID] = s
	}
	p.known.Store(&known)
}

// places finds out where the disks' data are.
func (h host) places(all []*vbd, plans map[key]plan, on []stat.Mount) map[key]whose {
	mounts := stat.ByDev(on)
	out := make(map[key]whose, len(all))
	below := map[device]below{}
	for _, v := range all {
		pl := plans[v.key]
		for _, d := range pl.devices {
			if _, ok := below[d]; !ok {
				below[d] = h.below(d)
			}
		}
		out[v.key] = placed(v, &pl, mounts, below)
	}
	return out
}

// placed puts together what xenstore, the images' paths and the kernel say.
func placed(v *vbd, pl *plan, mounts map[string]stat.Mount, below map[device]below) (w whose) {
	g := &event.GuestDisk{Domid: v.domid, Devid: v.devid, Device: v.guestName(), VM: v.uuid, Name: v.domain, VDI: v.vdi, SR: v.sr, SRType: v.storage}
	w.guest = g
	images := pl.images
	if pl.tap == nil {
		images = []image{{path: imagePath(v.params)}}
	} else {
		for _, im := range images {
			g.Images = append(g.Images, im.path)
		}
	}
	for _, d := range pl.devices {
		g.Devices = append(g.Devices, d.String())
	}
	var family string
	for i, im := range images {
		at := placeOf(im.path)
		if i == 0 && im.path != "" {
			g.Type = at.kind
		}
		if g.SR == "" || g.SR == at.sr { // the chain's files are all in one repository
			g.SR = cmp.Or(g.SR, at.sr)
		}
		family = cmp.Or(family, at.family)
		if i == 0 {
			g.VDI = cmp.Or(g.VDI, at.vdi)
		}
		m, ok := mounts[im.on.String()]
		if !ok || pl.tap == nil {
			continue
		}
		if m.Network() && g.Server == "" {
			g.Server, w.mount = m.Source, m.Point
			if m.Server.IsValid() {
				w.servers = append(w.servers, m.Server)
			}
			family = cmp.Or(family, map[string]string{"nfs4": "nfs", "cifs": "smb", "smb3": "smb"}[m.Type], m.Type)
		} else if m.Type == "ext4" || m.Type == "ext3" {
			family = cmp.Or(family, "ext")
		}
	}
	g.SRType = cmp.Or(g.SRType, family)
	for _, d := range pl.devices {
		b := below[d]
		for _, t := range b.targets {
			if !slices.Contains(w.servers, t) {
				w.servers = append(w.servers, t)
			}
		}
		if g.SRType == "lvm" {
			switch {
			case len(b.targets) > 0:
				g.SRType = "lvmoiscsi"
			case b.fabric:
				g.SRType = "lvmohba"
			}
		}
	}
	return w
}
