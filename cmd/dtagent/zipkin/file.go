package zipkin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxLine bounds one line of a file. The toolstack writes 10,000 spans of
// about 1 KiB into a line at most.
const maxLine = 64 << 20

// ErrLine marks a line that could not be read; what follows it was.
var ErrLine = errors.New("not zipkin-v2")

// ReadPath reads every span of a bugtool file, or of all files with names
// ending in .ndjson, .json or .zst below a directory, and calls fn for each. A
// line that cannot be read is reported in the returned error, which wraps
// ErrLine and names the first of them; the lines after it are read all the
// same.
func ReadPath(path string, fn func(Span)) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return readFile(path, fn)
	}
	var errs []error
	files := 0
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		if d.Type().IsRegular() && isSpanFile(p) {
			files++
			if err := readFile(p, fn); err != nil && !errors.Is(err, fs.ErrNotExist) { // gone: rotated meanwhile
				errs = append(errs, err)
			}
		}
		return nil
	})
	if err == nil && files == 0 && len(errs) == 0 {
		return fmt.Errorf("%s holds no .ndjson or .zst file", path)
	}
	return errors.Join(append(errs, err)...)
}

func isSpanFile(path string) bool {
	switch filepath.Ext(strings.TrimSuffix(path, ".zst")) {
	case ".ndjson", ".json":
		return true
	}
	return false
}

func readFile(path string, fn func(Span)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".zst") {
		d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer d.Close()
		r = d
	}
	if err := Read(r, fn); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Read reads lines of spans from r and calls fn for each span. See ReadPath
// for its error.
func Read(r io.Reader, fn func(Span)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	var first error
	bad := 0
	for n := 1; sc.Scan(); n++ {
		spans, err := Parse(sc.Bytes())
		if err != nil {
			if bad++; first == nil {
				first = fmt.Errorf("line %d: %v", n, err)
			}
			continue
		}
		for _, s := range spans {
			fn(s)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("reading spans: %w", err)
	}
	if bad > 0 {
		return fmt.Errorf("%w: %d line(s); %w", ErrLine, bad, first)
	}
	return nil
}
