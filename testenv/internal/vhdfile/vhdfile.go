//go:build linux

// Package vhdfile has the layout of a dynamic VHD, as far as a tapdisk needs it, and
// makes such images.
package vhdfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// Sizes.
const (
	Sector          = 512
	BlockSectors    = 4096 // of a block's data
	BlockSize       = BlockSectors * Sector
	BitmapSectors   = 1
	Unused          = 0xffffffff // entry of a block that the image does not have
	TableOffset     = 1536
	batmapCookie    = "tdbatmap"
	footerCookie    = "conectix"
	headerCookie    = "cxsparse"
	dynamic, differ = 3, 4
)

// Content says what an image holds. The zero value is one without data.
type Content struct {
	Size    int64   // of the disk, a multiple of BlockSize
	Blocks  float64 // share of the blocks that it has
	Sectors float64 // share of the pages in them, 4 KiB each, that it has
	Batmap  bool    // it keeps which blocks are whole, so that their bitmaps need not be read
	Child   bool    // it has a parent
	Seed    uint64
}

// Layout is what the first parts of an image say.
type Layout struct {
	Table  []uint32 // where each block begins, in sectors
	Whole  []bool   // which blocks have all sectors; nil: unknown
	NextDB uint64   // sectors, behind the last block
}

var be = binary.BigEndian

func checksum(b []byte, at int) {
	be.PutUint32(b[at:], 0)
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	be.PutUint32(b[at:], ^sum)
}

func footer(size int64, kind uint32) []byte {
	b := make([]byte, Sector)
	copy(b, footerCookie)
	be.PutUint32(b[8:], 2)        // features: reserved, always set
	be.PutUint32(b[12:], 0x10000) // version
	be.PutUint64(b[16:], Sector)  // where the header is
	copy(b[28:], "tap\x00")
	be.PutUint32(b[32:], 0x10003)
	be.PutUint64(b[40:], uint64(size))
	be.PutUint64(b[48:], uint64(size))
	be.PutUint32(b[60:], kind)
	checksum(b, 64)
	return b
}

func header(blocks int) []byte {
	b := make([]byte, 2*Sector)
	copy(b, headerCookie)
	be.PutUint64(b[8:], ^uint64(0))
	be.PutUint64(b[16:], TableOffset)
	be.PutUint32(b[24:], 0x10000)
	be.PutUint32(b[28:], uint32(blocks))
	be.PutUint32(b[32:], BlockSize)
	checksum(b, 36)
	return b
}

func sectors(n int) int { return (n + Sector - 1) / Sector * Sector }

// Align returns where a block goes that comes after the sector next: its data begin
// on a page.
func Align(next uint64) uint64 {
	if over := (next + BitmapSectors) % 8; over != 0 {
		next += 8 - over
	}
	return next
}

// Create makes an image at path, which may be a block device.
func Create(path string, c Content) error {
	if c.Size <= 0 || c.Size%BlockSize != 0 {
		return fmt.Errorf("vhd %s: size %d is no multiple of %d", path, c.Size, BlockSize)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("vhd: %w", err)
	}
	err = write(f, c)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("vhd %s: %w", path, err)
	}
	return nil
}

func write(f *os.File, c Content) error {
	blocks := int(c.Size / BlockSize)
	rng := rand.New(rand.NewPCG(c.Seed, 2))
	kind := uint32(dynamic)
	if c.Child {
		kind = differ
	}
	foot := footer(c.Size, kind)
	table, whole := make([]byte, sectors(4*blocks)), make([]byte, sectors((blocks+7)/8))
	for i := range table {
		table[i] = 0xff
	}
	behind := TableOffset + len(table)
	if c.Batmap {
		behind += Sector + len(whole)
	}
	next := uint64(behind / Sector)
	for _, blk := range rng.Perm(blocks)[:int(c.Blocks*float64(blocks)+0.5)] {
		at := Align(next)
		be.PutUint32(table[4*blk:], uint32(at))
		bits := make([]byte, Sector)
		full := true
		for i := range bits { // one byte a page
			if rng.Float64() < c.Sectors {
				bits[i] = 0xff
			} else {
				full = false
			}
		}
		if full {
			whole[blk/8] |= 0x80 >> (blk % 8)
		}
		if _, err := f.WriteAt(bits, int64(at)*Sector); err != nil {
			return err
		}
		next = at + BitmapSectors + BlockSectors
	}
	parts := [][]byte{foot, header(blocks), table}
	if c.Batmap {
		h := make([]byte, Sector)
		copy(h, batmapCookie)
		be.PutUint64(h[8:], uint64(TableOffset+len(table)+Sector))
		be.PutUint32(h[16:], uint32(len(whole)/Sector))
		be.PutUint32(h[20:], 0x10002)
		var sum uint32
		for _, v := range whole {
			sum += uint32(v)
		}
		be.PutUint32(h[24:], ^sum)
		parts = append(parts, h, whole)
	}
	at := int64(0)
	for _, p := range parts {
		if _, err := f.WriteAt(p, at); err != nil {
			return err
		}
		at += int64(len(p))
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return nil
	}
	if _, err := f.WriteAt(foot, int64(next)*Sector); err != nil {
		return err
	}
	return f.Truncate(int64(next+1) * Sector)
}

// Read reads the first parts of an image by readAt.
func Read(readAt func(b []byte, at int64) error) (*Layout, error) {
	foot, head := make([]byte, Sector), make([]byte, 2*Sector)
	if err := errors.Join(readAt(foot, 0), readAt(head, Sector)); err != nil {
		return nil, err
	}
	if string(foot[:8]) != footerCookie || string(head[:8]) != headerCookie {
		return nil, errors.New("no dynamic VHD")
	}
	if size := be.Uint32(head[32:]); size != BlockSize {
		return nil, fmt.Errorf("blocks of %d bytes", size)
	}
	blocks, at := int(be.Uint32(head[28:])), int64(be.Uint64(head[16:]))
	table := make([]byte, sectors(4*blocks))
	if err := readAt(table, at); err != nil {
		return nil, err
	}
	l := &Layout{Table: make([]uint32, blocks)}
	at += int64(len(table))
	l.NextDB = uint64(at) / Sector
	h := make([]byte, Sector)
	if err := readAt(h, at); err == nil && string(h[:8]) == batmapCookie {
		bits := make([]byte, Sector*int(be.Uint32(h[16:])))
		at = int64(be.Uint64(h[8:]))
		if err := readAt(bits, at); err != nil {
			return nil, err
		}
		l.Whole = make([]bool, blocks)
		for i := range l.Whole {
			l.Whole[i] = bits[i/8]&(0x80>>(i%8)) != 0
		}
		l.NextDB = uint64(at)/Sector + uint64(len(bits)/Sector)
	}
	for i := range l.Table {
		l.Table[i] = be.Uint32(table[4*i:])
		if l.Table[i] != Unused {
			l.NextDB = max(l.NextDB, uint64(l.Table[i])+BitmapSectors+BlockSectors)
		}
	}
	return l, nil
}
