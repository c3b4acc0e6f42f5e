package recording

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
)

// magic stands at the start of a recording, before the version.
const magic = "DTREC\n"

// version is that of the form of recordings that are written.
const version = 1

const (
	sizeMagic = len(magic) + 2
	sizeFrame = 16
	maxFrame  = 1 << 20 // bytes of a frame's content, and of what is stored of it

	frameHeader  = 'H'
	frameBlock   = 'B'
	frameTrailer = 'E'

	plain      = 0
	compressed = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer writes a recording, each frame with one Write. It is used by one
// goroutine.
type Writer struct {
	w      io.Writer
	z      *zstd.Encoder // nil: frames are stored as they are
	bytes  int64
	totals Totals
	buf    []byte
	err    error // after it nothing more can be written
}

// NewWriter writes the header. Compression is for files; without it a frame costs
// nothing but a copy.
func NewWriter(w io.Writer, h *Header, compress bool) (*Writer, error) {
	out := &Writer{w: w}
	if compress {
		var err error
		if out.z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(maxFrame)); err != nil {
			return nil, fmt.Errorf("recording: %w", err)
		}
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	out.buf = binary.LittleEndian.AppendUint16(append(out.buf, magic...), version)
	return out, out.frame(frameHeader, b)
}

// Block writes a block, which can be used again.
func (w *Writer) Block(b *Block) error {
	if len(b.raw) == 0 {
		return nil
	}
	if err := w.frame(frameBlock, b.raw); err != nil {
		return err
	}
	w.totals.add(b.totals)
	return nil
}

// End writes the trailer. It does not close what is written to.
func (w *Writer) End(reason string) error {
	b, err := json.Marshal(Trailer{reason, w.totals})
	if err != nil {
		return fmt.Errorf("recording: %w", err)
	}
	if err := w.frame(frameTrailer, b); err != nil {
		return err
	}
	w.err = errors.New("recording: it was ended")
	return nil
}

// Bytes is how much was written.
func (w *Writer) Bytes() int64 { return w.bytes }

// Totals count what was written.
func (w *Writer) Totals() Totals { return w.totals }

// frame writes one frame after what is in buf.
func (w *Writer) frame(kind byte, content []byte) error {
	if w.err != nil {
		return w.err
	}
	if len(content) > maxFrame {
		return fmt.Errorf("recording: %d bytes are too many for a frame", len(content))
	}
	at := len(w.buf)
	w.buf = append(w.buf, make([]byte, sizeFrame)...)
	codec := byte(plain)
	if w.z != nil {
		codec = compressed
		w.buf = w.z.EncodeAll(content, w.buf)
	}
	if stored := len(w.buf) - at - sizeFrame; w.z == nil || stored >= len(content) {
		codec = plain
		w.buf = append(w.buf[:at+sizeFrame], content...)
	}
	head, stored := w.buf[at:at+sizeFrame], w.buf[at+sizeFrame:]
	le := binary.LittleEndian
	head[0], head[1] = kind, codec
	le.PutUint32(head[4:], uint32(len(content)))
	le.PutUint32(head[8:], uint32(len(stored)))
	le.PutUint32(head[12:], checksum(head, stored))
	n, err := w.w.Write(w.buf)
	w.bytes += int64(n)
	w.buf = w.buf[:0]
	w.err = err
	return err
}

// checksum is that of a frame.
func checksum(head, stored []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, stored)
}
