package correlate

import (
	"encoding/hex"
	"strings"

	"github.com/xenserver/dtagent/correlate/logline"
	"github.com/xenserver/dtagent/correlate/wire"
	"github.com/xenserver/dtagent/probes/event"
)

// A request of a guest is nobody's work in dom0, so it has no parent; but what the
// toolstack does at the same time to the VM, its disks, or the repository that they
// are in, can be why it is slow. So the objects that operations work at are an index
// of these: by uuid, the latest few. An object is known of an operation when
//
//	xenopsd logs the operation or atom, the VM first
//	a call between daemons has it as a parameter: VM, SR, VDI
//	XAPI logs that it takes up a call: "VM.snapshot: VM = '<uuid> …'"
//	a program has the path of an image among its arguments
//
// What only looks (VM.get_…, SR.stat) is left out. Of a tree of spans the outermost
// that names the object stands for all of it.

const (
	worksPerObject  = 4                              // operations of one object that are remembered
	objectsOfSpan   = 4                              // objects of one operation
	worksRemembered = event.Time(10 * 1_000_000_000) // for so long after its end an operation can still be linked to
)

// uuid is one as 16 bytes.
type uuid [16]byte

// parseUUID reads 36 characters.
func parseUUID[T string | []byte](s T) (id uuid, ok bool) {
	if len(s) != 36 {
		return id, false
	}
	n := 0
	for i := 0; i < len(s); {
		switch i {
		case 8, 13, 18, 23:
			if s[i] != '-' {
				return id, false
			}
			i++
			continue
		}
		var two [2]byte
		two[0], two[1] = s[i], s[i+1]
		if _, err := hex.Decode(id[n:n+1], two[:]); err != nil {
			return id, false
		}
		n++
		i += 2
	}
	return id, true
}

// visit is one operation at an object.
type visit struct {
	op         ref
	place      place
	name       string
	start, end event.Time // end is 0 while it goes on
}

// object is what operations work at, the oldest first.
type object struct {
	visits [worksPerObject]visit
	n      int
}

// ObjectStats say what is known of the objects that operations work at.
type ObjectStats struct {
	Noted   uint64 `json:"noted"`   // operations, once for each object
	Dropped uint64 `json:"dropped"` // that made room for later ones at the same object
	Evicted uint64 `json:"evicted"` // objects that made room for others
	Known   int    `json:"known"`   // objects, now
}

func (e *Engine) dropObject(o *object) {
	for i := range o.n {
		e.release(&o.visits[i].place)
	}
}

// looks are the beginnings of the names of what changes nothing, and is not worth a
// link.
var looks = [...]string{
	"get_", "set_", "add_to_", "remove_from_", "assert_", "update_", "atomic_", "stat", "exists", "list", "ls", "query",
	"can_", "is_", "check_", "retrieve_", "maybe_", "compute_", "recompute_", "wait_", "generate_", "signal_", "cancel_",
}

// isLook tells whether a method, "VM.get_record", or an operation of xenopsd,
// "VM_check_state", only looks.
func isLook(name string) bool {
	if i := strings.LastIndexByte(name, ' '); i >= 0 && strings.HasPrefix(name, "send ") {
		name = name[i+1:]
	}
	verb := name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		verb = name[i+1:]
	} else if i := strings.IndexByte(name, '_'); i > 0 && strings.ToUpper(name[:i]) == name[:i] {
		verb = name[i+1:]
	}
	for _, l := range looks {
		if strings.HasPrefix(verb, l) {
			return true
		}
	}
	return false
}

// worksAt notes that a works at the object of that uuid.
func (e *Engine) worksAt(a *activity, id []byte) {
	u, ok := parseUUID(id)
	if !ok || a.objects == objectsOfSpan || isLook(a.name) {
		return
	}
	o := e.objects.renew(u, e.now)
	for i := range o.n {
		w := &o.visits[i]
		if w.op.get() == a || w.end == 0 && w.place.tree.find() == a.tree.find() {
			return // it, or what it is part of, is there
		}
	}
	if o.n == worksPerObject {
		e.stats.Objects.Dropped++
		drop := 0
		for i := range o.n {
			if o.visits[i].end != 0 {
				drop = i
				break
			}
		}
		e.release(&o.visits[drop].place)
		copy(o.visits[drop:], o.visits[drop+1:])
		o.n--
	}
	o.visits[o.n] = visit{op: a.ref(), place: e.placeOf(a), name: a.name, start: a.start}
	o.n++
	e.stats.Objects.Noted++
	a.object[a.objects] = u
	a.objects++
}

// worksAtObjects notes what a call between daemons names.
func (e *Engine) worksAtObjects(a *activity, call *wire.Call) {
	for _, id := range [...][]byte{call.Object, call.VDI, call.SR} {
		if id != nil {
			e.worksAt(a, id)
		}
	}
}

// worksAtLogged notes what XAPI logs that call or task a works at.
func (e *Engine) worksAtLogged(a *activity, l *logline.Line) {
	var ids [objectsOfSpan][]byte
	n := 0
	method := logline.Objects(l.Message, func(_ logline.ObjectKind, id []byte) {
		if n < len(ids) {
			ids[n] = id
			n++
		}
	})
	if method == nil || isLook(e.text(method, maxName)) {
		return
	}
	for _, id := range ids[:n] {
		e.worksAt(a, id)
	}
}

// worked notes that a has ended.
func (e *Engine) worked(a *activity) {
	for _, u := range a.object[:a.objects] {
		o := e.objects.get(u)
		if o == nil {
			continue // evicted
		}
		for i := range o.n {
			if w := &o.visits[i]; w.op.get() == a {
				w.end = a.end
				w.name = a.name // it may have got a better one
			}
		}
		e.objects.renew(u, e.now)
	}
}

// forgetWorks forgets the operations that ended long ago, and the objects that have
// no others.
func (e *Engine) forgetWorks() {
	before := e.now - worksRemembered - e.hold
	for s := e.objects.order.head; s != nil && s.born < before; s = e.objects.order.head {
		o := &s.value
		kept := 0
		for i := range o.n {
			w := &o.visits[i]
			if w.end != 0 && w.end < before || w.end == 0 && w.op.get() == nil {
				e.release(&w.place)
				continue
			}
			o.visits[kept] = *w
			kept++
		}
		clear(o.visits[kept:])
		o.n = kept
		if kept == 0 {
			e.objects.remove(s)
			continue
		}
		e.objects.renew(s.key, e.now)
	}
}

// linksTo appends links to the operations that worked at the object between first and
// last, at most one for each trace.
func (e *Engine) linksTo(dst []SpanLink, u uuid, as string, first, last event.Time) []SpanLink {
	o := e.objects.get(u)
	if o == nil {
		return dst
	}
next:
	for i := range o.n {
		w := &o.visits[i]
		t := w.place.tree.find()
		if w.start > last || w.end != 0 && w.end < first || t.out {
			continue
		}
		if !t.fixed {
			e.stats.Requests.Unlinked++ // it has no id yet
			continue
		}
		for j := range dst {
			if dst[j].TraceID == t.id {
				continue next
			}
		}
		if len(dst) == maxLinks {
			e.stats.Requests.Unlinked++
			continue
		}
		dst = append(dst, SpanLink{TraceID: t.id, SpanID: w.place.span, Name: w.name, Object: as})
	}
	return dst
}
