package correlate

import "github.com/xenserver/dtagent/probes/event"

// table is a bounded map whose oldest entry goes when it is full. Pointers to
// its values hold until the entry goes.
type table[K comparable, V any] struct {
	max     int
	index   map[K]*slot[K, V]
	order   list[slot[K, V], *slot[K, V]]
	free    *slot[K, V]
	evicted *uint64
	drop    func(*V) // gives back what a value holds
}

type slot[K comparable, V any] struct {
	key        K
	value      V
	born       event.Time
	prev, next *slot[K, V]
}

func (s *slot[K, V]) links() (prev, next **slot[K, V]) { return &s.prev, &s.next }

func (t *table[K, V]) init(max int, evicted *uint64, drop func(*V)) {
	t.max, t.evicted, t.drop = max, evicted, drop
	t.index = make(map[K]*slot[K, V])
}

func (t *table[K, V]) len() int { return len(t.index) }

// get returns the value of k, nil if there is none.
func (t *table[K, V]) get(k K) *V {
	if s := t.index[k]; s != nil {
		return &s.value
	}
	return nil
}

// put returns a zero value for k, in place of any there was.
func (t *table[K, V]) put(k K, now event.Time) *V {
	t.del(k)
	if len(t.index) >= t.max {
		*t.evicted++
		t.remove(t.order.head)
	}
	s := t.free
	if s == nil {
		s = new(slot[K, V])
	} else {
		t.free = s.next
		s.next = nil
	}
	s.key, s.born = k, now
	t.index[k] = s
	t.order.add(s)
	return &s.value
}

// renew returns the value of k, a zero one if there was none, as the latest.
func (t *table[K, V]) renew(k K, now event.Time) *V {
	s := t.index[k]
	if s == nil {
		return t.put(k, now)
	}
	s.born = now
	t.order.moveToEnd(s)
	return &s.value
}

func (t *table[K, V]) del(k K) {
	if s := t.index[k]; s != nil {
		t.remove(s)
	}
}

// expire drops what was put before that time and returns how much it was.
func (t *table[K, V]) expire(before event.Time) (n uint64) {
	for s := t.order.head; s != nil && s.born < before; s = t.order.head {
		t.remove(s)
		n++
	}
	return n
}

// each calls f for the keys and values, oldest first, and drops those for which
// it returns false.
func (t *table[K, V]) each(keep func(K, *V) bool) {
	for s := t.order.head; s != nil; {
		next := s.next
		if !keep(s.key, &s.value) {
			t.remove(s)
		}
		s = next
	}
}

func (t *table[K, V]) remove(s *slot[K, V]) {
	t.drop(&s.value)
	delete(t.index, s.key)
	t.order.del(s)
	*s = slot[K, V]{next: t.free}
	t.free = s
}

// linked is a list element that holds its own links.
type linked[T any] interface {
	*T
	links() (prev, next **T)
}

// list is a doubly linked list. Its zero value is empty.
type list[T any, P linked[T]] struct {
	head, tail *T
	len        int
}

func (l *list[T, P]) add(x *T) {
	prev, next := P(x).links()
	*prev, *next = l.tail, nil
	if l.tail == nil {
		l.head = x
	} else {
		_, n := P(l.tail).links()
		*n = x
	}
	l.tail = x
	l.len++
}

func (l *list[T, P]) del(x *T) {
	prev, next := P(x).links()
	if *prev == nil {
		l.head = *next
	} else {
		_, n := P(*prev).links()
		*n = *next
	}
	if *next == nil {
		l.tail = *prev
	} else {
		p, _ := P(*next).links()
		*p = *prev
	}
	*prev, *next = nil, nil
	l.len--
}

// moveToEnd makes x the last one.
func (l *list[T, P]) moveToEnd(x *T) {
	if l.tail != x {
		l.del(x)
		l.add(x)
	}
}
