//go:build linux

package shm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

// Ring is the state of the ring between a guest and its tapdisk at some time. Tapdisk
// writes it at most each 5 seconds, while it has something to do.
type Ring struct {
	Size    uint32 // requests that it holds
	ReqProd uint32 // requests that the guest has put on it
	ReqCons uint32 // of those, taken by tapdisk
	RspProd uint32 // answers that the guest may take
}

// Occupied returns how many requests are on the ring or being served.
func (r *Ring) Occupied() uint32 { return min(r.ReqProd-r.RspProd, r.Size) }

// Waiting returns how many of them tapdisk has not taken yet.
func (r *Ring) Waiting() uint32 { return min(r.ReqProd-r.ReqCons, r.Size) }

// maxRing is as many requests as any ring holds.
const maxRing = 1 << 16

// ParseRing parses a file "io_ring": a checksum and three lines of text. The error
// wraps ErrForm also when it was read while it was written.
func ParseRing(b []byte) (r Ring, err error) {
	const sum = 8 // an unsigned long
	if len(b) < sum {
		return r, fmt.Errorf("%w: %d bytes of a ring", ErrForm, len(b))
	}
	text := b[sum:]
	if i := strings.IndexByte(string(text), 0); i >= 0 { // a file that was not cut
		text = text[:i]
	}
	if want := binary.LittleEndian.Uint64(b); want != uint64(crc32.ChecksumIEEE(text)) {
		return r, fmt.Errorf("%w: checksum of a ring", ErrForm)
	}
	w := strings.Fields(string(text))
	const words = 16 // nr_ents N req prod N cons N event N rsp prod N pvt N event N
	if len(w) != words || w[0] != "nr_ents" || w[2] != "req" || w[3] != "prod" || w[5] != "cons" || w[9] != "rsp" || w[10] != "prod" {
		return r, fmt.Errorf("%w: ring %q", ErrForm, text)
	}
	for _, v := range []struct {
		word string
		to   *uint32
	}{{w[1], &r.Size}, {w[4], &r.ReqProd}, {w[6], &r.ReqCons}, {w[11], &r.RspProd}} {
		n, err := strconv.ParseInt(v.word, 10, 64) // some are printed signed
		if err != nil || n < math.MinInt32 || n > math.MaxUint32 {
			return r, fmt.Errorf("%w: ring %q", ErrForm, text)
		}
		*v.to = uint32(n)
	}
	if r.Size == 0 || r.Size > maxRing || r.Size&(r.Size-1) != 0 {
		return r, fmt.Errorf("%w: ring of %d", ErrForm, r.Size)
	}
	return r, nil
}

// Ring reads that of a disk. When is different for each time that it was written.
func (d Dir) Ring(v VBD) (r Ring, when int64, err error) {
	var b [page]byte
	n, when, err := read(d.ringFile(v, "io_ring"), &b)
	if err != nil {
		return r, 0, err
	}
	r, err = ParseRing(b[:n])
	return r, when, err
}

// ParseIdle parses the file of cpumond: how idle dom0 is, from 0 to 1, by which
// tapdisks decide whether they may poll their rings.
func ParseIdle(b []byte) (float64, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%w: %d bytes of cpumond", ErrForm, len(b))
	}
	idle := float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4:]))) / 100
	if !(idle >= 0 && idle <= 1) {
		return 0, fmt.Errorf("%w: idle %g", ErrForm, idle)
	}
	return idle, nil
}

// Idle reads what cpumond says.
func (d Dir) Idle() (float64, error) {
	var b [page]byte
	n, _, err := read(filepath.Join(string(d), "cpu_util_monitor"), &b)
	if err != nil {
		return 0, err
	}
	return ParseIdle(b[:n])
}
