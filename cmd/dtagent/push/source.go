package push

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// maxLine bounds one line, or a file that is posted whole. The toolstack writes
// 10,000 spans of about 1 KiB into a line at most.
const maxLine = 64 << 20

// source is one file.
type source struct {
	path string
	size int64 // as it lies on disk
}

// sources returns the files to send: path itself, or the span files below it.
func sources(path string) (files []source, skipped int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.IsDir() {
		return []source{{path, info.Size()}}, 0, nil
	}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist): // rotated meanwhile
			return nil
		case err != nil:
			return err
		case !info.Mode().IsRegular() || !isSpanFile(p):
			skipped++
		default:
			files = append(files, source{p, info.Size()})
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: no file below it is named .ndjson, .json or .zst", path)
	}
	return files, skipped, err
}

func isSpanFile(path string) bool {
	ext := filepath.Ext(path)
	return ext == ".ndjson" || ext == ".json" || ext == ".zst"
}

// line is one zipkin array of a file.
type line struct {
	number int
	raw    []byte // belongs to the receiver
	spans  []zipkin.Span
	err    error // why it cannot be sent
	half   bool  // err is that the file ends in it
}

// read calls fn for every line that is not blank, until fn is false. What is in
// the file before an error is read. at counts the bytes read of the file.
func (s *source) read(at *int64, fn func(line) bool) error {
	path := s.path
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(path, ".zst") {
		// A file that has grown large is compressed, and then has this name.
		if z, zerr := os.Open(path + ".zst"); zerr == nil {
			f, err, path = z, nil, path+".zst"
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = &counter{f, at}
	if strings.HasSuffix(path, ".zst") {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer d.Close()
		r = d
	}
	n := 0
	if filepath.Ext(strings.TrimSuffix(path, ".zst")) != ".ndjson" && !strings.HasSuffix(path, ".zst") {
		n, err = readWhole(r, fn)
	} else {
		n, err = readLines(r, fn)
	}
	if err != nil {
		return fmt.Errorf("%s: after line %d: %w", path, n, err)
	}
	return nil
}

type counter struct {
	r io.Reader
	n *int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	*c.n += int64(n)
	return n, err
}

// readWhole reads a file that is one array, over any number of lines; one that is
// not is read as lines.
func readWhole(r io.Reader, fn func(line) bool) (int, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxLine+1))
	if err != nil {
		return 0, err
	}
	if len(text) > maxLine {
		return 0, fmt.Errorf("longer than %d bytes", maxLine)
	}
	if spans, err := zipkin.Parse(text); err == nil {
		if len(spans) > 0 {
			fn(line{number: 1, raw: text, spans: spans})
		}
		return 1, nil
	}
	return readLines(bytes.NewReader(text), fn)
}

// readLines returns how many lines there were.
func readLines(r io.Reader, fn func(line) bool) (n int, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	sc.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i+1], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	for sc.Scan() {
		text := sc.Bytes()
		whole := text[len(text)-1] == '\n'
		if !whole && sc.Err() != nil {
			break // what a damaged file still gave
		}
		n++
		if text = bytes.TrimSpace(text); len(text) == 0 {
			continue
		}
		l := line{number: n}
		l.spans, l.err = zipkin.Parse(text)
		switch {
		case l.err == nil:
			l.raw = bytes.Clone(text)
		case !whole:
			l.half = true
		}
		if !fn(l) {
			return n, nil
		}
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return n, fmt.Errorf("a line longer than %d bytes", maxLine)
	} else if err != nil {
		return n, err
	}
	return n, nil
}
