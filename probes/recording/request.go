package recording

import (
	"encoding/binary"
	"fmt"

	"github.com/xenserver/dtagent/probes/event"
)

// A request of a guest is a set of bits: which of its times are not zero, then what
// it was; then these times, the layers first, and its numbers. New bits are added
// before the last, and none of those that are there moves when layers are added: a
// reader that does not know one refuses.
const (
	requestUsual = 1 << (iota + 32)
	requestWrite
	requestSlow
	requestMerged
	requestFailed
	requestUnsplit
	requestEnd
)

func appendRequest(b []byte, r *event.Request) []byte {
	var bits uint64
	mark := func(bit uint64, set bool) {
		if set {
			bits |= bit
		}
	}
	for i, ns := range r.Layers {
		mark(1<<i, ns != 0)
	}
	mark(requestUsual, r.Usual != 0)
	mark(requestWrite, r.Write)
	mark(requestSlow, r.Slow)
	mark(requestMerged, r.Merged)
	mark(requestFailed, r.Failed)
	mark(requestUnsplit, r.Unsplit)
	b = binary.AppendUvarint(b, bits)
	for _, ns := range r.Layers {
		if ns != 0 {
			b = binary.AppendVarint(b, ns)
		}
	}
	if r.Usual != 0 {
		b = binary.AppendVarint(b, r.Usual)
	}
	b = binary.AppendUvarint(b, r.Offset)
	b = binary.AppendUvarint(b, uint64(r.Bytes))
	return binary.AppendUvarint(b, uint64(r.IOs))
}

func (c *cursor) request(r *event.Request) {
	bits := c.number(64)
	if bits >= requestEnd || bits&(requestUsual-1)>>event.NumLayers != 0 {
		c.err = fmt.Errorf("%w: request of a guest with bits %#x", ErrNewer, bits)
		return
	}
	for i := range r.Layers {
		if bits&(1<<i) != 0 {
			r.Layers[i] = c.signed(64)
		}
	}
	if bits&requestUsual != 0 {
		r.Usual = c.signed(64)
	}
	r.Write, r.Slow, r.Merged = bits&requestWrite != 0, bits&requestSlow != 0, bits&requestMerged != 0
	r.Failed, r.Unsplit = bits&requestFailed != 0, bits&requestUnsplit != 0
	r.Offset = c.number(64)
	r.Bytes = uint32(c.number(32))
	r.IOs = uint16(c.number(16))
}

// A guest's disk is its two numbers, then so many texts, then its two lists of texts.

// diskTexts are the texts of a disk. New ones are added at the end, and a reader
// refuses more than it knows.
func diskTexts(d *event.GuestDisk) [9]*string {
	return [...]*string{&d.Device, &d.VM, &d.Name, &d.VBD, &d.VDI, &d.SR, &d.SRType, &d.Type, &d.Server}
}

// maxList bounds the files and the devices of a disk: a chain has 30 at most.
const maxList = 64

// diskBytes is how large the texts of a disk are.
func diskBytes(d *event.GuestDisk) (n int) {
	if d == nil {
		return 0
	}
	for _, s := range diskTexts(d) {
		n += len(*s)
	}
	for _, list := range [][]string{d.Images, d.Devices} {
		for _, s := range list[:min(len(list), maxList)] {
			n += len(s)
		}
	}
	return n
}

func appendDisk(b []byte, d *event.GuestDisk) []byte {
	b = binary.AppendUvarint(b, uint64(d.Domid))
	b = binary.AppendUvarint(b, uint64(d.Devid))
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	texts := diskTexts(d)
	b = binary.AppendUvarint(b, uint64(len(texts)))
	for _, s := range texts {
		text(*s)
	}
	for _, list := range [][]string{d.Images, d.Devices} {
		list = list[:min(len(list), maxList)]
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			text(s)
		}
	}
	return b
}

func (c *cursor) disk(names names) *event.GuestDisk {
	d := &event.GuestDisk{Domid: uint32(c.number(32)), Devid: uint32(c.number(32))}
	texts := diskTexts(d)
	n := c.number(64)
	if n > uint64(len(texts)) {
		c.err = fmt.Errorf("%w: a guest's disk with %d texts", ErrNewer, n)
		return nil
	}
	for _, s := range texts[:n] {
		*s = names.of(c.bytes())
	}
	for _, list := range []*[]string{&d.Images, &d.Devices} {
		n := c.number(64)
		if n > maxList {
			c.fail("a guest's disk with %d files", n)
			return nil
		}
		for range n {
			*list = append(*list, names.of(c.bytes()))
		}
	}
	if c.err != nil {
		return nil
	}
	return d
}
