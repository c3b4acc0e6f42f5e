package bugtool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// timeFormat is RFC 3339 with six decimals and Ptime's mark for "UTC, no offset
// given".
const timeFormat = "2006-01-02T15:04:05.000000-00:00"

const (
	suffix           = ".ndjson"
	compressedSuffix = suffix + ".zst"
	tempSuffix       = compressedSuffix + ".tmp"
)

// file is the open file of one service.
type file struct {
	service string
	fd      *os.File // nil: none is open
	path    string
	size    int64 // up to the end of the last whole line

	line  []byte // under construction
	spans int    // in line
	used  uint64
}

// open makes a new file. Two Observers may ask for the same name within one
// microsecond: the later gets the next one.
func (f *file) open(dir, host string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	now = now.UTC()
	for range 10_000 {
		path := filepath.Join(dir, fileName(f.service)+"-"+fileName(host)+"-"+now.Format(timeFormat)+suffix)
		now = now.Add(time.Microsecond)
		if _, err := os.Lstat(path + ".zst"); err == nil {
			continue // the clock was set back: keep what was rotated
		}
		fd, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND|syscall.O_NOFOLLOW, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		f.fd, f.path, f.size = fd, path, 0
		return nil
	}
	return fmt.Errorf("%s: no free file name for %s", dir, f.service)
}

// append writes one line wholly or not at all. It returns errDeleted, with no
// file open, when the file has lost its name.
func (f *file) append(line []byte) error {
	_, err := f.fd.Write(line)
	if err != nil {
		if terr := f.fd.Truncate(f.size); terr != nil {
			// The half line cannot be taken back: nothing may follow it.
			_ = f.close()
			return fmt.Errorf("%w; and cutting the half line off: %w", err, terr)
		}
		return err
	}
	st, err := f.fd.Stat()
	if err != nil {
		f.size += int64(len(line))
		return nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink == 0 {
		_ = f.close()
		return errDeleted
	}
	f.size = st.Size()
	return nil
}

func (f *file) close() error {
	if f.fd == nil {
		return nil
	}
	err := f.fd.Close()
	f.fd, f.size = nil, 0
	return err
}

// fileName makes s safe as part of a file name.
func fileName(s string) string {
	if s == "" {
		return "unknown"
	}
	b := []byte(s[:min(len(s), 64)])
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		case c == '.' && i > 0:
		default:
			b[i] = '_'
		}
	}
	return string(b)
}

// compress replaces path by path.zst, mode 0444. On an error path stays. The
// temporary file's name begins with a dot and is removed by Trim if a crash
// leaves it behind.
func compress(path string) error {
	in, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	out := z.EncodeAll(in, make([]byte, 0, len(in)/8))
	_ = z.Close()
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".zst.tmp")
	if err := writeNew(temp, out, 0o444); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path+".zst"); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Remove(path)
}

func writeNew(path string, data []byte, mode os.FileMode) error {
	fd, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = fd.Write(data)
	if err == nil {
		err = fd.Chmod(mode)
	}
	return errors.Join(err, fd.Close())
}
