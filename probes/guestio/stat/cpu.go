//go:build linux

// Package stat reads figures that the kernel keeps anyway, from which it shows what
// guests' disks wait for: CPU time of dom0 and of the processes that serve disks, RPCs
// of NFS mounts, TCP connections to storage. All are sums since something began.
package stat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrForm says that a file is not as the kernel writes it.
var ErrForm = errors.New("not in the form that the kernel writes")

// CPU is the time of all CPUs of dom0 since it started. Times are whole ticks.
type CPU struct {
	CPUs  int
	Total time.Duration
	Idle  time.Duration // and waiting for I/O
	Steal time.Duration // Xen ran others instead
}

// userHZ is in what part of a second the kernel tells times to processes, on all
// architectures that Xen has.
const userHZ = 100

// ParseCPU parses the beginning of /proc/stat.
func ParseCPU(b []byte) (c CPU, err error) {
	for line := range bytes.Lines(b) {
		name, rest, _ := bytes.Cut(line, []byte(" "))
		switch {
		case string(name) == "cpu":
			w := strings.Fields(string(rest))
			if len(w) < 8 {
				return c, fmt.Errorf("%w: stat %q", ErrForm, line)
			}
			for i, s := range w[:8] { // what follows is of guests, and counted in the first two
				n, err := strconv.ParseUint(s, 10, 64)
				if err != nil || n > uint64(math.MaxInt64/tick/8) {
					return c, fmt.Errorf("%w: stat %q", ErrForm, line)
				}
				d := time.Duration(n) * tick
				c.Total += d
				switch i {
				case 3, 4:
					c.Idle += d
				case 7:
					c.Steal = d
				}
			}
		case bytes.HasPrefix(name, []byte("cpu")):
			c.CPUs++
		case c.Total > 0:
			return c, nil
		}
	}
	if c.Total == 0 {
		return c, fmt.Errorf("%w: stat without cpu", ErrForm)
	}
	return c, nil
}

// tick is the unit of those times.
const tick = time.Second / userHZ

// ReadCPU reads that of a proc file system.
func ReadCPU(proc string) (CPU, error) {
	b, err := readSome(filepath.Join(proc, "stat"), 64<<10) // the lines of 512 CPUs
	if err != nil {
		return CPU{}, err
	}
	return ParseCPU(b)
}

// Sched is how the threads of a process spent their time since they began.
type Sched struct {
	Running  time.Duration
	RunQueue time.Duration // they could have run and had no CPU
}

// maxThreads is how many threads of a process are looked at.
const maxThreads = 256

// ParseSched parses a file schedstat of a thread.
func ParseSched(b []byte) (s Sched, err error) {
	w := strings.Fields(string(b))
	if len(w) < 3 {
		return s, fmt.Errorf("%w: schedstat %q", ErrForm, b)
	}
	for i, d := range []*time.Duration{&s.Running, &s.RunQueue} {
		n, err := strconv.ParseInt(w[i], 10, 64)
		if err != nil || n < 0 {
			return s, fmt.Errorf("%w: schedstat %q", ErrForm, b)
		}
		*d = time.Duration(n)
	}
	return s, nil
}

// ReadSched reads what the threads of a process did, by their numbers: those that end
// would else take their past with them.
func ReadSched(proc string, tgid uint32) (map[uint32]Sched, error) {
	tasks := filepath.Join(proc, strconv.FormatUint(uint64(tgid), 10), "task")
	f, err := os.Open(tasks)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxThreads)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := map[uint32]Sched{}
	for _, n := range names {
		tid, err := strconv.ParseUint(n, 10, 32)
		if err != nil {
			continue
		}
		b, err := readSome(filepath.Join(tasks, n, "schedstat"), 128)
		if err != nil {
			continue // it has just ended
		}
		s, err := ParseSched(b)
		if err != nil {
			return nil, err
		}
		out[uint32(tid)] = s
	}
	return out, nil
}

// readSome reads the beginning of a file.
func readSome(name string, most int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, most)
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}
