package remote

import (
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Spool is what the Exporters of one agent share: a bound on what their queues
// together keep on disk, and the compressor. Its methods may be called by several
// goroutines at once.
type Spool struct {
	limit int64
	enc   *zstd.Encoder
	dec   *zstd.Decoder

	mu   sync.Mutex
	used int64
}

// DefaultSpoolBytes bounds all queues together: the log partition of a host has
// 4 GiB.
const DefaultSpoolBytes = 256 << 20

// maxFrame bounds what one file becomes when it is read. A frame is larger than
// maxBody only when a single span is.
const maxFrame = 16 << 20

// NewSpool returns a Spool for at most that many bytes of files; 0:
// DefaultSpoolBytes.
func NewSpool(bytes int64) *Spool {
	if bytes <= 0 {
		bytes = DefaultSpoolBytes
	}
	// The options are constant, so that an error is a mistake in them.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	if err != nil {
		panic(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFrame))
	if err != nil {
		panic(err)
	}
	return &Spool{limit: bytes, enc: enc, dec: dec}
}

// Used returns the bytes of all files.
func (s *Spool) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *Spool) compress(body []byte) []byte {
	return s.enc.EncodeAll(body, make([]byte, 0, 256+len(body)/8))
}

func (s *Spool) decompress(content []byte) ([]byte, error) {
	body, err := s.dec.DecodeAll(content, nil)
	if err == nil && len(body) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("frame: %w", err)
	}
	return body, nil
}

// reserve takes room for n bytes and tells whether there was.
func (s *Spool) reserve(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.limit {
		return false
	}
	s.used += n
	return true
}

// add takes room for n bytes that are on disk already.
func (s *Spool) add(n int64) {
	s.mu.Lock()
	s.used += n
	s.mu.Unlock()
}

func (s *Spool) release(n int64) { s.add(-n) }
