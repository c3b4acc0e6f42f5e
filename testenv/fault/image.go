//go:build linux

package fault

import (
	"io"
	"sync"
)

// image is the content of a disk that a server has.
type image struct {
	mu    sync.Mutex
	bytes []byte
}

func newImage(size int64) *image { return &image{bytes: make([]byte, size)} }

// ReadAt is that of io.ReaderAt.
func (i *image) ReadAt(b []byte, at int64) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := copy(b, i.from(at))
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is that of io.WriterAt. The image does not grow.
func (i *image) WriteAt(b []byte, at int64) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := copy(i.from(at), b)
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// from returns what is from a place on: nothing if there is no such place.
func (i *image) from(at int64) []byte {
	if at < 0 || at > int64(len(i.bytes)) {
		return nil
	}
	return i.bytes[at:]
}
