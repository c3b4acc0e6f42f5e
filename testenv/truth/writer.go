package truth

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Writer is the record of one process. Its methods may be called from any
// goroutine; a nil Writer records nothing and still gives out IDs.
type Writer struct {
	prefix string
	next   atomic.Uint64

	mu  sync.Mutex
	buf []Entry

	flush sync.Mutex
	f     *os.File
}

// NewWriter opens the record of the process name in dir.
func NewWriter(dir, name string) (*Writer, error) {
	prefix := name + "-" + strconv.Itoa(os.Getpid())
	f, err := os.OpenFile(filepath.Join(dir, prefix+".truth"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("truth: %w", err)
	}
	return &Writer{prefix: prefix + ":", f: f}, nil
}

// ID returns a new entry ID.
func (w *Writer) ID() string {
	if w == nil {
		return ""
	}
	return w.prefix + strconv.FormatUint(w.next.Add(1), 10)
}

// Add records a finished entry. It makes no system call.
func (w *Writer) Add(e Entry) {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.buf = append(w.buf, e)
	w.mu.Unlock()
}

// Flush writes what has been recorded so far to the file.
func (w *Writer) Flush() error {
	if w == nil {
		return nil
	}
	w.flush.Lock()
	defer w.flush.Unlock()
	w.mu.Lock()
	entries := w.buf
	w.buf = nil
	w.mu.Unlock()
	if len(entries) == 0 {
		return nil
	}
	var out []byte
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		out = append(append(out, line...), '\n')
	}
	if _, err := w.f.Write(out); err != nil {
		return fmt.Errorf("truth: %w", err)
	}
	return nil
}

// Now reads CLOCK_MONOTONIC in nanoseconds, the clock of entries and of the
// kernel's bpf_ktime_get_ns.
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}
