//go:build linux

package probes

import (
	"sync"
	"time"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/target"
)

const (
	maxListeners = 1024                        // sockets that accept, of all targets
	listenerAge  = event.Time(5 * time.Second) // after which a name is looked up again
	unknownAge   = event.Time(time.Second)     // the same when it was not found
)

type listenerKey struct {
	tgid uint32
	fd   int32
}

type listener struct {
	name string
	read event.Time
}

// listeners names accepting sockets. It is safe for concurrent use.
type listeners struct {
	proc target.Proc

	mu  sync.Mutex
	all map[listenerKey]listener
}

func (l *listeners) add(tgid uint32, fd int32, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(listenerKey{tgid, fd}, listener{name: name})
}

func (l *listeners) put(k listenerKey, v listener) {
	if l.all == nil || len(l.all) >= maxListeners {
		l.all = make(map[listenerKey]listener)
	}
	l.all[k] = v
}

// name returns the path or address of the listener fd of tgid, "" if it cannot
// be found. Names are looked up in /proc at most every few seconds.
func (l *listeners) name(tgid uint32, fd int32, now event.Time) string {
	k := listenerKey{tgid, fd}
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.all[k]
	age := listenerAge
	if v.name == "" {
		age = unknownAge
	}
	if ok && v.read == 0 { // seeded
		v.read = now
		l.all[k] = v
	}
	if ok && now-v.read < age {
		return v.name
	}
	name := l.proc.Local(tgid, fd)
	if name == v.name {
		name = v.name // the string that is kept already
	}
	l.put(k, listener{name: name, read: now})
	return name
}

func (l *listeners) drop(tgid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.all {
		if k.tgid == tgid {
			delete(l.all, k)
		}
	}
}

func (l *listeners) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = nil
}
