package remote

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// attach takes the directory into use, if there is one to be used and it is not
// in use yet, and enters what it holds. It is called by Open and then by Export,
// so that a directory that could not be used comes into use when it can.
func (e *Exporter) attach() error {
	if e.o.Dir == "" || e.lock != nil {
		return nil
	}
	lock, err := openDir(e.o.Dir, meta{Endpoint: e.o.Endpoint, Encoder: e.o.Encoder.Name(), ObserverUUID: e.o.ObserverUUID, ObserverName: e.o.ObserverName})
	if err != nil {
		return err
	}
	frames, err := scan(e.o.Dir)
	if err != nil {
		return errors.Join(err, lock.Close())
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	e.lock = lock
	now, spans := time.Now(), 0
	known := map[string]bool{}
	for _, f := range e.q.frames {
		known[f.name()] = true
	}
	frames = slices.DeleteFunc(frames, func(f *frame) bool { return known[f.name()] })
	for _, f := range frames {
		if f.when.After(now) { // the clock was set back
			f.when = now
		}
		spans += f.spans
		e.seq = max(e.seq, f.seq)
		e.o.Spool.add(f.size)
	}
	e.q.prepend(frames)
	if spans > 0 {
		e.o.Ledger.Recovered(spans)
		e.log.Info("spans found in the queue", "count", spans, "files", len(frames))
	}
	e.expire(now)
	e.drop(export.QueueFull, func() bool { return e.q.disk > e.o.DiskBytes }, onDisk)
	return nil
}

// hold puts a frame into a file or else into memory.
func (e *Exporter) hold(content []byte, spans int) {
	e.mu.Lock()
	e.seq++
	now := time.Now()
	f := &frame{when: now, stamp: now.UnixNano(), seq: e.seq, spans: spans, size: room(int64(len(content)))}
	e.mu.Unlock()

	err := e.write(f, content, true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		f.content = slices.Clone(content) // without the room that it came with
		cause := memoryCause(err)
		e.drop(cause, func() bool { return e.q.memory+len(content) > e.o.MemoryBytes }, inMemory)
		if e.closed || e.q.memory+len(content) > e.o.MemoryBytes {
			e.o.Ledger.Dropped(cause, spans)
			return
		}
	}
	e.q.add(f)
	if len(e.q.frames) == 1 || e.q.spans >= e.spans {
		e.signal()
	}
}

// errNoDir is why a frame is in memory when nothing else was asked for, and
// errFull when files may take no more room.
var (
	errNoDir = errors.New("no queue directory")
	errFull  = errors.New("room for queues used up")
)

func memoryCause(err error) export.Cause {
	switch {
	case err == errNoDir || err == errFull:
		return export.QueueFull
	case noRoom(err):
		return export.DiskFull
	}
	return export.WriteError
}

// write puts a frame into its file, for which older ones go if need be and if
// they may. It is called by Export and by Close only.
func (e *Exporter) write(f *frame, content []byte, mayDrop bool) error {
	if e.o.Dir == "" {
		return errNoDir
	}
	err := e.attach()
	if err == nil {
		err = e.reserve(f.size, mayDrop)
	}
	if err == errFull {
		return err
	}
	if err == nil {
		if err = writeFile(e.o.Dir, f.name(), content, false); err != nil {
			e.o.Spool.release(f.size)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		e.detach() // somebody has deleted it; the next attach makes it anew
	}
	e.noteDisk(err)
	return err
}

func (e *Exporter) detach() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lock != nil {
		_ = e.lock.Close()
		e.lock = nil
	}
}

// noteDisk keeps the error of the last write, and logs changes.
func (e *Exporter) noteDisk(err error) {
	e.mu.Lock()
	was := e.diskErr
	e.diskErr = err
	e.mu.Unlock()
	switch {
	case err != nil && was == nil:
		e.log.Warn("queue not written to disk, spans are held in memory", "dir", e.o.Dir, "err", err)
	case err == nil && was != nil:
		e.log.Info("queue written to disk again", "dir", e.o.Dir)
	}
}

// reserve makes room for a file.
func (e *Exporter) reserve(size int64, mayDrop bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ok := false
	e.drop(export.QueueFull, func() bool {
		ok = e.q.disk+size <= e.o.DiskBytes && e.o.Spool.reserve(size)
		return !ok && mayDrop
	}, onDisk)
	if !ok {
		return errFull
	}
	return nil
}

// spill moves frames from memory to files, as far as that works. It is called by
// Export and by Close only.
func (e *Exporter) spill() {
	if e.o.Dir == "" {
		return
	}
	for {
		e.mu.Lock()
		i := slices.IndexFunc(e.q.frames, inMemory) // one that is being sent may go, too
		if i < 0 {
			e.mu.Unlock()
			return
		}
		f := e.q.frames[i]
		content := f.content
		e.mu.Unlock()
		if e.write(f, content, false) != nil {
			return
		}
		e.mu.Lock()
		if f.gone {
			_ = os.Remove(filepath.Join(e.o.Dir, f.name()))
			e.o.Spool.release(f.size)
		} else {
			e.q.count(f, -1)
			f.content = nil
			e.q.count(f, 1)
		}
		e.mu.Unlock()
	}
}

// expire drops what is too old.
func (e *Exporter) expire(now time.Time) {
	old := func(f *frame) bool { return now.Sub(f.when) > e.o.Age }
	e.drop(export.TooOld, always, old)
}

// drop drops the oldest frames for which ok returns true, while there are any
// and more returns true.
func (e *Exporter) drop(c export.Cause, more func() bool, ok func(*frame) bool) {
	for more() {
		f := e.q.oldest(ok)
		if f == nil {
			return
		}
		e.forget(f)
		e.o.Ledger.Dropped(c, f.spans)
		if !e.dropping && c != export.Unsent {
			e.dropping = true
			e.log.Warn("undelivered spans are being dropped", "cause", c, "held", e.q.spans, "files", e.q.files, "disk_bytes", e.q.disk)
		}
	}
}

// erase removes the files of frames that are about to be forgotten. It needs no
// lock: that may take a while.
func (e *Exporter) erase(frames []*frame) {
	for _, f := range frames {
		e.mu.Lock()
		disk := onDisk(f)
		e.mu.Unlock()
		if disk {
			_ = os.Remove(filepath.Join(e.o.Dir, f.name()))
			f.erased = true
		}
	}
}

// forget removes frames with their files.
func (e *Exporter) forget(frames ...*frame) {
	e.q.remove(frames...)
	for _, f := range frames {
		if !onDisk(f) {
			continue
		}
		if !f.erased {
			_ = os.Remove(filepath.Join(e.o.Dir, f.name()))
		}
		e.o.Spool.release(f.size)
	}
	if len(e.q.frames) == 0 {
		e.idle.Broadcast()
	}
}
