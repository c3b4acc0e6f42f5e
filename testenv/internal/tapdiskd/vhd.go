//go:build linux

package tapdiskd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/vhdfile"
)

const (
	cachedBitmaps = 32 // VHD_CACHE_SIZE
	blockSectors  = vhdfile.BlockSectors
	bitmapSize    = vhdfile.BitmapSectors * sector
	paddedBitmap  = 4096
)

// vhd is an image of that type: drivers/block-vhd.c. Every 2 MiB of the disk are a
// block of the file, if it has it, behind a bitmap of the sectors that are there.
type vhd struct {
	file
	s     *server
	level int // in the chain
	*vhdfile.Layout

	free    []*dataIO
	bitmaps [cachedBitmaps]*bitmap
	unused  []*bitmap
	clock   uint64

	// The allocation of a block: one at a time.
	adding struct {
		on      bool
		blk     uint32
		at      uint64 // sectors, of its bitmap
		waiting *bitmap
		errno   int
		buf     []byte // of the table
		table   tiocb
		zero    tiocb
	}
	zeroes, ones []byte

	bitmapIsRead, bitmapIsWritten func(*tiocb, int)
}

// bitmap is that of a block, in the cache.
type bitmap struct {
	blk                         uint32
	used                        uint64 // when, by the image's clock
	locked                      bool
	reading, writing, tableToBe bool // tableToBe: the table is to have the block before the transaction ends
	bits, shadow                []byte
	tiocb                       tiocb
	waiting                     []*dataIO // for it to be read
	queue                       []*dataIO // while a transaction closes

	// The transaction.
	part              []*dataIO
	started, finished int
	closed            bool
	errno             int
}

func (b *bitmap) inUse() bool {
	return b.reading || b.writing || b.tableToBe || len(b.waiting)+len(b.part)+len(b.queue) > 0
}

func (b *bitmap) set(sec, n int) {
	for i := sec; i < sec+n; i++ {
		b.shadow[i/8] |= 0x80 >> (i % 8)
	}
}

func (b *bitmap) has(sec int) bool { return b.bits[sec/8]&(0x80>>(sec%8)) != 0 }

// span returns how many of n sectors from sec on are as the first.
func (b *bitmap) span(sec, n int) int {
	i := 1
	for ; i < n && sec+i < blockSectors && b.has(sec+i) == b.has(sec); i++ {
	}
	return i
}

// aligned returns n bytes on a page.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, (n+4095)/4096*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
}

func bufAddr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// readAt reads a part of an image before there are requests. b is of whole sectors.
func (f *file) readAt(b []byte, offset int64) error {
	buf, err := aligned(len(b))
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	n, err := unix.Pread(f.fd, buf[:len(b)], offset)
	if err == nil && n < len(b) {
		err = unix.ENODATA
	}
	if err != nil {
		return fmt.Errorf("%d bytes at %d: %w", len(b), offset, err)
	}
	copy(b, buf)
	return nil
}

func openVHD(s *server, f file, level int) (*vhd, error) {
	v := &vhd{file: f, s: s, level: level}
	v.bitmapIsRead, v.bitmapIsWritten = v.bitmapRead, v.bitmapWritten
	if err := v.open(); err != nil {
		return nil, err
	}
	var err error
	if v.Layout, err = vhdfile.Read(v.readAt); err != nil {
		return nil, fmt.Errorf("image %s: %w", f.path, err)
	}
	mem, err := aligned(2*cachedBitmaps*bitmapSize + sector)
	if err != nil {
		return nil, err
	}
	if v.zeroes, err = aligned(paddedBitmap); err != nil {
		return nil, err
	}
	if v.ones, err = aligned(paddedBitmap); err != nil {
		return nil, err
	}
	for i := range v.ones {
		v.ones[i] = 0xff
	}
	piece := func(n int) []byte {
		b := mem[:n:n]
		mem = mem[n:]
		return b
	}
	v.free = pool(f.q, v.dataDone)
	for range cachedBitmaps {
		b := &bitmap{bits: piece(bitmapSize), shadow: piece(bitmapSize)}
		for _, l := range []*[]*dataIO{&b.waiting, &b.queue, &b.part} {
			*l = make([]*dataIO, 0, dataRequests)
		}
		b.tiocb.arg = b
		f.q.own(&b.tiocb)
		v.unused = append(v.unused, b)
	}
	v.adding.buf = piece(sector)
	v.adding.table.done, v.adding.zero.done = v.tableDone, v.zeroDone
	f.q.own(&v.adding.table)
	f.q.own(&v.adding.zero)
	return v, nil
}

func (v *vhd) bitmap(blk uint32) *bitmap {
	for _, b := range v.bitmaps {
		if b != nil && b.blk == blk {
			return b
		}
	}
	return nil
}

func (v *vhd) touch(b *bitmap) {
	v.clock++
	b.used = v.clock
}

// add gives a block a place in the cache, which another may lose. There may be none.
func (v *vhd) add(blk uint32) *bitmap {
	var b *bitmap
	if n := len(v.unused); n > 0 {
		b, v.unused = v.unused[n-1], v.unused[:n-1]
	} else {
		oldest := -1
		for i, c := range v.bitmaps {
			if c != nil && !c.locked && (oldest < 0 || c.used < v.bitmaps[oldest].used) {
				oldest = i
			}
		}
		if oldest < 0 {
			return nil
		}
		b = v.bitmaps[oldest]
		v.bitmaps[oldest] = nil
	}
	clear(b.bits)
	clear(b.shadow)
	b.blk, b.locked, b.reading, b.writing, b.tableToBe = blk, false, false, false, false
	b.started, b.finished, b.closed, b.errno = 0, 0, false, 0
	v.bitmaps[slices.Index(v.bitmaps[:], nil)] = b
	v.touch(b)
	return b
}

// drop takes a bitmap out of the cache.
func (v *vhd) drop(b *bitmap) {
	v.bitmaps[slices.Index(v.bitmaps[:], b)] = nil
	v.unused = append(v.unused, b)
}

func (v *vhd) whole(blk uint32) bool { return v.Whole != nil && v.Whole[blk] }

// known is what the image knows of a sector: read_bitmap_cache.
type known int

const (
	locked known = iota // another block is being added
	noBlock
	absent
	present
	notCached
	pending
)

func (v *vhd) look(at uint64, write, again bool) (known, *bitmap) {
	blk := uint32(at / blockSectors)
	if v.Table[blk] == vhdfile.Unused {
		if write && v.adding.on && v.adding.blk != blk {
			return locked, nil
		}
		return noBlock, nil
	}
	if v.whole(blk) {
		return present, nil
	}
	b := v.bitmap(blk)
	if b != nil && !b.locked && !again && v.s.knobs.Uncached.Load() != 0 {
		v.drop(b)
		b = nil
	}
	if b == nil {
		return notCached, nil
	}
	v.touch(b)
	switch {
	case b.reading:
		return pending, b
	case b.has(int(at % blockSectors)):
		return present, b
	}
	return absent, b
}

func (v *vhd) read(p piece)  { v.start(p, false) }
func (v *vhd) write(p piece) { v.start(p, false) }

// start is vhd_queue_read and vhd_queue_write. again: p has waited for its bitmap.
func (v *vhd) start(p piece, again bool) {
	for p.count > 0 {
		c := p
		sec := int(c.sector % blockSectors)
		rest := min(c.count, blockSectors-sec)
		if c.sector/blockSectors >= uint64(len(v.Table)) {
			v.s.complete(c, int(syscall.EINVAL))
			return
		}
		errno := 0
		what, b := v.look(c.sector, p.write, again)
		switch what {
		case locked:
			errno = int(syscall.EBUSY)
		case noBlock, absent:
			c.count = rest
			if what == absent {
				c.count = b.span(sec, c.count)
			}
			if !p.write {
				v.s.forward(c, v.level)
			} else {
				errno = v.data(c, true, what == noBlock)
			}
		case present:
			c.count = rest
			if b != nil {
				c.count = b.span(sec, c.count)
			}
			errno = v.data(c, false, false)
		case notCached, pending:
			c.count = rest
			if what == notCached {
				b = v.readBitmap(uint32(c.sector / blockSectors))
			}
			errno = v.await(c, b)
		}
		if errno != 0 {
			c.count = p.count
			v.s.complete(c, errno)
			return
		}
		p.sector += uint64(c.count)
		p.count -= c.count
		p.buf += uintptr(c.count) * sector
	}
}

func (v *vhd) take() *dataIO {
	n := len(v.free)
	if n == 0 {
		return nil
	}
	io := v.free[n-1]
	v.free = v.free[:n-1]
	io.bitmap, io.waits, io.finished, io.redundant, io.errno = nil, false, false, false, 0
	return io
}

// await has p wait until b is read.
func (v *vhd) await(p piece, b *bitmap) (errno int) {
	if b == nil {
		return int(syscall.EBUSY)
	}
	io := v.take()
	if io == nil {
		return int(syscall.EBUSY)
	}
	io.piece = p
	p.r.truth.Metadata++
	b.waiting = append(b.waiting, io)
	b.locked = true
	return 0
}

// readBitmap is schedule_bitmap_read.
func (v *vhd) readBitmap(blk uint32) *bitmap {
	b := v.add(blk)
	if b == nil {
		return nil
	}
	b.tiocb.done = v.bitmapIsRead
	b.locked, b.reading = true, true
	v.q.io(&b.tiocb, v.fd, false, bufAddr(b.bits), bitmapSize, int64(v.Table[blk])*sector)
	return b
}

// bitmapRead is finish_bitmap_read.
func (v *vhd) bitmapRead(t *tiocb, errno int) {
	b := t.arg.(*bitmap)
	b.reading = false
	waiting := b.waiting
	b.waiting = b.waiting[len(b.waiting):] // what is added now waits for something else
	if errno != 0 {
		v.drop(b)
	} else {
		copy(b.shadow, b.bits)
	}
	for _, io := range waiting {
		p := io.piece
		v.free = append(v.free, io)
		if errno != 0 {
			v.s.complete(p, errno)
		} else {
			v.start(p, true)
		}
	}
	b.waiting = waiting[:0]
	if errno == 0 && !b.inUse() {
		b.locked = false
	}
}

// data is schedule_data_read and schedule_data_write. change: bits are to be set.
func (v *vhd) data(p piece, change, newBlock bool) (errno int) {
	io := v.take()
	if io == nil {
		return int(syscall.EBUSY)
	}
	blk, sec := uint32(p.sector/blockSectors), p.sector%blockSectors
	at := uint64(v.Table[blk])
	if newBlock {
		if errno := v.addBlock(blk); errno != 0 {
			v.free = append(v.free, io)
			return errno
		}
		at = v.adding.at
	}
	io.piece, io.tiocb.req = p, p.r
	p.r.truth.IOs++
	if change {
		b := v.bitmap(blk)
		b.locked = true
		io.bitmap = b
		if b.closed {
			b.queue = append(b.queue, io)
			io.waits = true
		} else {
			b.join(io)
		}
	} else if p.write && sec == 0 && v.whole(blk) {
		v.redundant(blk)
	}
	v.q.io(&io.tiocb, v.fd, p.write, p.buf, p.count*sector, int64(at+vhdfile.BitmapSectors+sec)*sector)
	return 0
}

// redundant writes the bitmap of a block that is known to be whole, together with the
// data that come right after it.
func (v *vhd) redundant(blk uint32) {
	io := v.take()
	if io == nil {
		return
	}
	io.redundant, io.tiocb.req = true, nil
	end := int64(v.Table[blk]+vhdfile.BitmapSectors) * sector
	v.q.io(&io.tiocb, v.fd, true, bufAddr(v.ones), paddedBitmap, end-paddedBitmap)
}

// join makes an I/O part of the transaction.
func (b *bitmap) join(io *dataIO) {
	b.part = append(b.part, io)
	b.started++
}

// addBlock is update_bat: a bitmap of zeroes is written, then the table.
func (v *vhd) addBlock(blk uint32) (errno int) {
	a := &v.adding
	if a.on {
		return 0 // it is this one
	}
	b := v.bitmap(blk)
	if b == nil {
		if b = v.add(blk); b == nil {
			return int(syscall.EBUSY)
		}
	}
	a.on, a.blk, a.at, a.waiting, a.errno = true, blk, vhdfile.Align(v.NextDB), nil, 0
	b.locked, b.tableToBe = true, true
	b.started++
	n := int(a.at-v.NextDB+vhdfile.BitmapSectors) * sector
	v.q.io(&a.zero, v.fd, true, bufAddr(v.zeroes), n, int64(v.NextDB)*sector)
	return 0
}

// zeroDone is finish_zero_bm_write.
func (v *vhd) zeroDone(_ *tiocb, errno int) {
	a := &v.adding
	b := v.bitmap(a.blk)
	b.finished++
	if errno != 0 {
		a.on = false
		b.errno, b.tableToBe = errno, false
	} else {
		first := a.blk / 128 * 128
		for i := range uint32(128) {
			e := uint32(vhdfile.Unused)
			if first+i == a.blk {
				e = uint32(a.at)
			} else if first+i < uint32(len(v.Table)) {
				e = v.Table[first+i]
			}
			binary.BigEndian.PutUint32(a.buf[4*i:], e)
		}
		v.q.io(&a.table, v.fd, true, bufAddr(a.buf), sector, vhdfile.TableOffset+int64(first)*4)
	}
	if b.started == b.finished {
		v.close(b)
	}
}

// tableDone is finish_bat_write.
func (v *vhd) tableDone(_ *tiocb, errno int) {
	a := &v.adding
	b := v.bitmap(a.blk)
	if errno == 0 {
		v.Table[a.blk] = uint32(a.at)
		v.NextDB = a.at + blockSectors + vhdfile.BitmapSectors
	} else {
		b.errno = errno
	}
	b.tableToBe = false
	if a.waiting != nil {
		v.end(b, errno)
	}
	a.on = false
}

// dataDone is finish_data_read and finish_data_write.
func (v *vhd) dataDone(t *tiocb, errno int) {
	io := t.arg.(*dataIO)
	io.errno, io.finished = errno, true
	b := io.bitmap
	switch {
	case io.redundant:
		v.free = append(v.free, io)
	case b == nil:
		v.signal(io, 0)
	case !io.waits:
		b.finished++
		if errno == 0 {
			b.set(int(io.piece.sector%blockSectors), io.piece.count)
		}
		if b.started == b.finished {
			v.close(b)
		}
	}
}

// signal ends an I/O on data.
func (v *vhd) signal(io *dataIO, errno int) {
	if errno == 0 {
		errno = io.errno
	}
	p := io.piece
	v.free = append(v.free, io)
	v.s.complete(p, errno)
}

// close is finish_data_transaction: the data are there, now the bits.
func (v *vhd) close(b *bitmap) {
	b.closed = true
	if b.errno != 0 || bytes.Equal(b.bits, b.shadow) {
		v.end(b, 0)
		return
	}
	at := uint64(v.Table[b.blk])
	if v.Table[b.blk] == vhdfile.Unused {
		at = v.adding.at
	}
	b.tiocb.done = v.bitmapIsWritten
	b.locked, b.writing = true, true
	v.touch(b)
	v.q.io(&b.tiocb, v.fd, true, bufAddr(b.shadow), bitmapSize, int64(at)*sector)
}

// bitmapWritten is finish_bitmap_write.
func (v *vhd) bitmapWritten(t *tiocb, errno int) {
	b := t.arg.(*bitmap)
	b.writing = false
	v.end(b, errno)
}

// end is finish_bitmap_transaction.
func (v *vhd) end(b *bitmap, errno int) {
	if b.errno == 0 {
		b.errno = errno
	}
	if b.tableToBe {
		v.adding.waiting = b
		return
	}
	if b.errno != 0 {
		copy(b.shadow, b.bits)
	} else {
		copy(b.bits, b.shadow)
		if v.Whole != nil && full(b.bits) {
			v.Whole[b.blk] = true
		}
	}
	failed := b.errno
	for _, io := range b.part {
		v.signal(io, failed)
	}
	b.part = b.part[:0]
	b.started, b.finished, b.closed, b.errno = 0, 0, false, 0
	queued := b.queue
	b.queue = b.queue[:0]
	for _, io := range queued { // the next transaction
		io.waits = false
		b.join(io)
		if io.finished {
			b.finished++
			if io.errno == 0 {
				b.set(int(io.piece.sector%blockSectors), io.piece.count)
			}
		}
	}
	if b.started > 0 && b.started == b.finished {
		v.close(b)
	}
	if !b.inUse() {
		b.locked = false
	}
}

func full(bits []byte) bool {
	for _, c := range bits {
		if c != 0xff {
			return false
		}
	}
	return true
}
