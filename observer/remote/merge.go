package remote

import (
	"os"
	"path/filepath"
	"slices"
)

// While a receiver is down a quiet host makes a small file each second, each of
// which takes a block. So that the room lasts for hours, small files are merged.
const (
	mergeFiles = 64       // into one, when there are twice as many
	mergeBytes = 64 << 10 // largest that counts as small
	mergeSpans = 2000     // most in a merged file, so that requests stay even
)

// merge makes larger files of small ones, while there are many. It is called by
// the sender, between deliveries. A kill in the midst leaves spans in two files:
// they are delivered twice, with the same ids.
func (e *Exporter) merge() {
	for e.ctx.Err() == nil {
		run := e.smallRun()
		if run == nil || !e.mergeRun(run) {
			return
		}
	}
}

// smallRun returns the oldest neighbours that are worth to be merged.
func (e *Exporter) smallRun() []*frame {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.q.files < 2*mergeFiles {
		return nil
	}
	start, spans, bytes := 0, 0, int64(0)
	for i, f := range e.q.frames {
		small := onDisk(f) && f.size <= mergeBytes
		if !small || spans+f.spans > mergeSpans || bytes+f.size > 4*mergeBytes {
			if i-start >= mergeFiles/4 {
				return slices.Clone(e.q.frames[start:i])
			}
			start, spans, bytes = i, 0, 0
			if !small {
				start++
				continue
			}
		}
		spans, bytes = spans+f.spans, bytes+f.size
		if i+1-start == mergeFiles {
			return slices.Clone(e.q.frames[start : i+1])
		}
	}
	return nil
}

func (e *Exporter) mergeRun(run []*frame) bool {
	var bodies [][]byte
	n, total := 0, 0
	for _, f := range run {
		body, err := e.read(f)
		if err != nil { // it is seen to when it is to be sent
			return false
		}
		if total += len(body); total > maxBody {
			return false
		}
		bodies = append(bodies, body)
		n += f.spans
	}
	content := e.o.Spool.compress(e.o.Encoder.Join(nil, bodies...))
	e.mu.Lock()
	e.seq++
	m := &frame{when: run[0].when, stamp: run[0].stamp, seq: e.seq, spans: n, size: room(int64(len(content)))}
	e.mu.Unlock()
	if err := writeFile(e.o.Dir, m.name(), content, false); err != nil {
		return false // no room for both
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	at := slices.Index(e.q.frames, run[0])
	// Export may have dropped the oldest of them meanwhile.
	if slices.ContainsFunc(run, func(f *frame) bool { return f.gone }) {
		_ = os.Remove(filepath.Join(e.o.Dir, m.name()))
		return false
	}
	e.o.Spool.add(m.size)
	e.q.insert(at, m)
	e.forget(run...)
	return true
}
