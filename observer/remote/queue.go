package remote

import (
	"slices"
	"time"
)

// frame is what one Export became: spans in the receiver's form, compressed.
type frame struct {
	when    time.Time // when it came, not after it was found
	stamp   int64     // of when, ns, for the name
	seq     uint64    // for the name
	spans   int
	size    int64  // room that its file takes
	content []byte // nil: in its file
	sending bool   // with the sender: it must stay
	gone    bool   // removed from the queue
	erased  bool   // its file is removed
}

// queue holds frames, the oldest first. Its owner bounds it.
type queue struct {
	frames []*frame
	spans  int
	files  int
	disk   int64
	memory int
}

func (q *queue) add(f *frame) {
	q.frames = append(q.frames, f)
	q.count(f, 1)
}

// prepend adds frames that are older than all others.
func (q *queue) prepend(fs []*frame) {
	q.frames = slices.Concat(fs, q.frames)
	for _, f := range fs {
		q.count(f, 1)
	}
}

func (q *queue) insert(at int, f *frame) {
	q.frames = slices.Insert(q.frames, at, f)
	q.count(f, 1)
}

func (q *queue) count(f *frame, sign int) {
	q.spans += sign * f.spans
	if f.content != nil {
		q.memory += sign * len(f.content)
		return
	}
	q.files += sign
	q.disk += int64(sign) * f.size
}

// remove takes out frames of the queue.
func (q *queue) remove(frames ...*frame) {
	for _, f := range frames {
		q.count(f, -1)
		f.gone = true
	}
	left := len(frames)
	for left > 0 && q.frames[0].gone { // as a rule they are the oldest
		q.frames[0] = nil
		q.frames = q.frames[1:]
		left--
	}
	if left > 0 {
		q.frames = slices.DeleteFunc(q.frames, func(f *frame) bool { return f.gone })
	}
}

// oldest returns the oldest frame that is not being sent and for which ok
// returns true, else nil.
func (q *queue) oldest(ok func(*frame) bool) *frame {
	for _, f := range q.frames {
		if !f.sending && ok(f) {
			return f
		}
	}
	return nil
}

func anyFrame(*frame) bool   { return true }
func onDisk(f *frame) bool   { return f.content == nil }
func inMemory(f *frame) bool { return f.content != nil }

func always() bool { return true }
