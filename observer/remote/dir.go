package remote

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A queue directory holds
//
//	queue.json                    whose queue it is (meta)
//	<ns>-<number>-<spans>.zst     a frame: when it was made, its place, its spans
//	.tmp-*                        what is being written, or was when the agent was killed
//	corrupt/                      frames that could not be read, the last few
//
// and is locked, by flock, by the Exporter that has it. Other files are left
// alone.
const (
	metaName   = "queue.json"
	tempPrefix = ".tmp-"
	frameExt   = ".zst"
	corruptDir = "corrupt"
	maxCorrupt = 16
	maxAside   = 7 * 24 * time.Hour
	// maxFrameSpans bounds what a file name may claim.
	maxFrameSpans = 1_000_000
	// block is what the smallest file takes.
	block = 4096
)

// ErrInUse is the error of Open when another Exporter, of this agent or another,
// has the directory.
var ErrInUse = errors.New("queue directory in use")

func room(bytes int64) int64 { return (bytes + block - 1) / block * block }

func (f *frame) name() string {
	return fmt.Sprintf("%020d-%010d-%d%s", f.stamp, f.seq, f.spans, frameExt)
}

// parseName returns the frame of a file name, nil if it is no frame's.
func parseName(name string) *frame {
	s, ok := strings.CutSuffix(name, frameExt)
	if !ok {
		return nil
	}
	p := strings.Split(s, "-")
	if len(p) != 3 {
		return nil
	}
	ns, err1 := strconv.ParseInt(p[0], 10, 64)
	seq, err2 := strconv.ParseUint(p[1], 10, 64)
	spans, err3 := strconv.Atoi(p[2])
	if err1 != nil || err2 != nil || err3 != nil || ns <= 0 || spans <= 0 || spans > maxFrameSpans {
		return nil
	}
	f := &frame{when: time.Unix(0, ns), stamp: ns, seq: seq, spans: spans}
	if f.name() != name {
		return nil
	}
	return f
}

// lockDir opens and locks a directory that exists. It waits, if it may, for as
// long as Leftovers takes to look at one.
func lockDir(path string, mayWait bool) (*os.File, error) {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || !mayWait || try == 20 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		// It may have been removed by the one that had it.
		var there, here os.FileInfo
		if there, err = os.Stat(path); err == nil {
			if here, err = d.Stat(); err == nil && !os.SameFile(there, here) {
				err = syscall.ENOENT
			}
		}
	} else if err == unix.EWOULDBLOCK {
		err = ErrInUse
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// openDir makes the directory if it is absent, locks it, and says in it whose
// it is.
func openDir(path string, m meta) (*os.File, error) {
	var lock *os.File
	for try := 0; ; try++ {
		err := os.MkdirAll(path, 0o700)
		if err == nil {
			lock, err = lockDir(path, true)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || try == 3 {
			return nil, err
		}
	}
	if err := m.store(path); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// trimAside removes what was set aside longer than maxAside ago.
func trimAside(path string) {
	dir := filepath.Join(path, corruptDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > maxAside {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir) // if it is empty
}

// closeDir gives the directory back, and removes it when nothing is left in it.
func closeDir(lock *os.File, path string, empty bool) error {
	var err error
	if empty {
		err = removeDir(path)
	}
	return errors.Join(err, lock.Close())
}

// removeDir removes a directory that has no frames; not if there are files
// that were set aside, or that are not ours.
func removeDir(path string) error {
	trimAside(path)
	entries, err := os.ReadDir(path)
	if err != nil {
		return ignoreAbsent(err)
	}
	for _, e := range entries {
		if e.Name() != metaName && !strings.HasPrefix(e.Name(), tempPrefix) {
			return nil
		}
	}
	for _, e := range entries {
		err = errors.Join(err, ignoreAbsent(os.Remove(filepath.Join(path, e.Name()))))
	}
	return errors.Join(err, ignoreAbsent(os.Remove(path)))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// scan removes what was half written and returns the frames of a directory, the
// oldest first.
func scan(path string) ([]*frame, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var frames []*frame
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(path, e.Name()))
			continue
		}
		f := parseName(e.Name())
		if f == nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // gone
		}
		f.size = room(min(info.Size(), maxFrame)) // a larger one is damaged, and no reason to drop others
		frames = append(frames, f)
	}
	slices.SortFunc(frames, func(a, b *frame) int { return strings.Compare(a.name(), b.name()) })
	return frames, nil
}

// writeFile writes a file that is there whole or not at all, unless the power
// fails.
func writeFile(path, name string, content []byte, sync bool) error {
	temp := filepath.Join(path, tempPrefix+name)
	err := writeTemp(temp, content, sync)
	if err == nil {
		err = os.Rename(temp, filepath.Join(path, name))
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

func writeTemp(temp string, content []byte, sync bool) error {
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// setAside moves a file that is of no use to the corrupt ones, of which the last
// few are kept.
func setAside(path, name string) {
	dir := filepath.Join(path, corruptDir)
	_ = os.Mkdir(dir, 0o700)
	if err := os.Rename(filepath.Join(path, name), filepath.Join(dir, name)); err != nil {
		_ = os.Remove(filepath.Join(path, name))
	}
	entries, err := os.ReadDir(dir) // by name, and so by age
	if err != nil {
		return
	}
	for _, e := range entries[:max(len(entries)-maxCorrupt, 0)] {
		_ = os.Remove(filepath.Join(dir, e.Name()))
	}
}

// noRoom tells the errors of a file system that is full.
func noRoom(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
