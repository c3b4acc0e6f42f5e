package correlate

import (
	"time"

	"github.com/xenserver/dtagent/probes/event"
)

// keepsClock is for how long a tree goes by the wall clock that showed when it began.
// Some trees last as long as a VM runs; what is new there is told by the clock of
// then.
const keepsClock = event.Time(time.Hour)

// wall turns the time of a span's begin into ns since 1970. Within a tree the wall
// clock does not step: a parent that began before the host's clock was set, or the host
// was suspended, is not torn from its children, and a duration is the kernel's.
func (e *Engine) wall(t *tree, at event.Time) int64 {
	if at-t.began > keepsClock {
		return e.cfg.Wall(at)
	}
	if !t.timed {
		t.ahead, t.timed = e.cfg.Wall(t.began)-int64(t.began), true
	}
	return int64(at) + t.ahead
}
