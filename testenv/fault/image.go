//go:build linux

package fault

import (
	"io"
	"sync"
)

// image is the content of a disk that a server in this process has.
type image struct {
	mu    sync.Mutex
	bytes []byte
	lag
}

func newImage(size int64) *image { return &image{bytes: make([]byte, size)} }

// ReadAt is that of io.ReaderAt.
func (i *image) ReadAt(b []byte, at int64) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := copy(b, i.bytes[min(max(at, 0), int64(len(i.bytes))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is that of io.WriterAt. The image does not grow.
func (i *image) WriteAt(b []byte, at int64) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := copy(i.bytes[min(max(at, 0), int64(len(i.bytes))):], b)
	if n < len(b) {
		return n, io.ErrShortWrite
	}
	return n, nil
}
