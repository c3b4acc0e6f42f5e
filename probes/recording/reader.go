package recording

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/probes/event"
)

// Reader reads a recording. It needs a few MiB, whatever is in the file. It is used
// by one goroutine.
type Reader struct {
	r      io.Reader
	z      *zstd.Decoder
	at     int64 // where in the file the next frame begins
	head   [sizeFrame]byte
	stored []byte
	plain  []byte

	header  Header
	trailer *Trailer
	totals  Totals // of the items that Next has given
	names   names
	block   cursor
	now     event.Time
	err     error // of Next
}

// NewReader reads the header. r is read in pieces of a frame.
func NewReader(r io.Reader) (*Reader, error) {
	in := &Reader{r: r, names: names{}}
	var start [sizeMagic]byte
	if _, err := io.ReadFull(r, start[:]); err != nil && !isEOF(err) {
		return nil, fmt.Errorf("recording: %w", err)
	} else if err != nil || string(start[:len(magic)]) != magic {
		return nil, ErrFormat
	}
	if v := binary.LittleEndian.Uint16(start[len(magic):]); v == 0 {
		return nil, ErrFormat
	} else if v > version {
		return nil, fmt.Errorf("%w: it has version %d, and up to %d is known", ErrNewer, v, version)
	}
	in.at = int64(sizeMagic)
	kind, content, err := in.frame()
	if err != nil {
		return nil, err
	}
	if kind != frameHeader {
		return nil, fmt.Errorf("%w: it has no header", ErrDamaged)
	}
	if err := decodeJSON(content, &in.header, "header"); err != nil {
		return nil, err
	}
	if len(in.header.Offsets) > maxOffsets {
		return nil, fmt.Errorf("%w: a clock with %d offsets", ErrDamaged, len(in.header.Offsets))
	}
	return in, nil
}

// Header is what the recording says about itself.
func (r *Reader) Header() *Header { return &r.header }

// Totals count the items that Next has given.
func (r *Reader) Totals() Totals { return r.totals }

// Trailer is the end of the recording, nil if Next has not come to it.
func (r *Reader) Trailer() *Trailer { return r.trailer }

// Next reads the next item. Its bytes are good until the next call. The error is
// io.EOF at the end, or wraps ErrTorn, ErrDamaged or ErrNewer; all items before it
// are good.
func (r *Reader) Next(it *Item) error {
	for r.err == nil && len(r.block.b) == 0 {
		r.err = r.nextBlock()
	}
	if r.err != nil {
		return r.err
	}
	at := r.at // behind the block
	r.block.item(it, &r.now, r.names)
	if err := r.block.err; err != nil {
		r.err = fmt.Errorf("%w, in the block before byte %d", err, at)
		return r.err
	}
	r.totals.count(it)
	return nil
}

// ReadBlock reads the next block into b as a whole, in place of Next; it does the
// same to Totals.
func (r *Reader) ReadBlock(b *Block) error {
	for r.err == nil {
		if r.err = r.nextBlock(); r.err != nil || len(r.block.b) == 0 {
			continue
		}
		b.raw = append(b.raw[:0], r.block.b...)
		before := r.totals
		r.totals = Totals{}
		var it Item
		for r.err == nil && len(r.block.b) > 0 { // what is passed on is good
			r.err = r.Next(&it)
		}
		b.totals, b.now = r.totals, r.now
		before.add(b.totals)
		r.totals = before
		return r.err
	}
	return r.err
}

// nextBlock reads frames up to one that is a block.
func (r *Reader) nextBlock() error {
	kind, content, err := r.frame()
	if err != nil {
		return err
	}
	if r.trailer != nil {
		return fmt.Errorf("%w: it goes on after its end", ErrDamaged)
	}
	switch kind {
	case frameBlock:
		r.block, r.now = cursor{b: content}, 0
		return nil
	case frameTrailer:
		t := new(Trailer)
		if err := decodeJSON(content, t, "trailer"); err != nil {
			return err
		}
		r.trailer = t
		return nil
	case frameHeader:
		return fmt.Errorf("%w: a second header before byte %d", ErrDamaged, r.at)
	}
	return fmt.Errorf("%w: frame %q before byte %d", ErrNewer, kind, r.at)
}

// frame reads one frame. Its content is good until the next call.
func (r *Reader) frame() (kind byte, content []byte, err error) {
	head := r.head[:]
	n, err := io.ReadFull(r.r, head)
	switch {
	case err == io.EOF && r.trailer != nil:
		return 0, nil, io.EOF
	case isEOF(err):
		return 0, nil, fmt.Errorf("%w: it ends at byte %d", ErrTorn, r.at+int64(n))
	case err != nil:
		return 0, nil, fmt.Errorf("recording: %w", err)
	}
	le := binary.LittleEndian
	length, size := int(le.Uint32(head[4:])), int(le.Uint32(head[8:]))
	if length > maxFrame || size > maxFrame {
		return 0, nil, fmt.Errorf("%w: frame of %d bytes at byte %d", ErrDamaged, max(length, size), r.at)
	}
	if n, err = r.read(size); err != nil {
		if isEOF(err) {
			return 0, nil, fmt.Errorf("%w: it ends at byte %d", ErrTorn, r.at+int64(sizeFrame+n))
		}
		return 0, nil, fmt.Errorf("recording: %w", err)
	}
	if le.Uint32(head[12:]) != checksum(head, r.stored) {
		return 0, nil, fmt.Errorf("%w: the checksum of the frame at byte %d is wrong", ErrDamaged, r.at)
	}
	if content, err = r.unpack(head[1], length); err != nil {
		return 0, nil, fmt.Errorf("%w, in the frame at byte %d", err, r.at)
	}
	r.at += int64(sizeFrame + size)
	return head[0], content, nil
}

// read fills stored with n bytes. It takes room as bytes come, not as they are
// announced.
func (r *Reader) read(n int) (int, error) {
	const piece = 64 << 10
	r.stored = r.stored[:0]
	for len(r.stored) < n {
		at := len(r.stored)
		r.stored = slices.Grow(r.stored, min(piece, n-at))[:min(at+piece, n)]
		if m, err := io.ReadFull(r.r, r.stored[at:]); err != nil {
			return at + m, err
		}
	}
	return n, nil
}

// unpack returns what is stored as it was before.
func (r *Reader) unpack(codec byte, length int) ([]byte, error) {
	switch codec {
	case plain:
		if len(r.stored) != length {
			return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, len(r.stored), length)
		}
		return r.stored, nil
	case compressed:
		if r.z == nil {
			var err error
			r.z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFrame), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return nil, fmt.Errorf("recording: %w", err)
			}
		}
		r.plain = slices.Grow(r.plain[:0], length) // of maxFrame at most; what is larger is refused
		content, err := r.z.DecodeAll(r.stored, r.plain[:0])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if len(content) != length {
			return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrDamaged, len(content), length)
		}
		return content, nil
	}
	return nil, fmt.Errorf("%w: codec %d", ErrNewer, codec)
}

// Close frees what the Reader needs. It does not close what is read.
func (r *Reader) Close() {
	if r.z != nil {
		r.z.Close()
		r.z = nil
	}
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
