//go:build linux

package xenopsd

import (
	"strings"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/node"
)

// item is an operation in a queue, with the task that it is.
type item struct {
	op   operation
	task *task
}

// pool is a pool of workers with its queues: one a tag, at most one worker for
// each tag, the tags in turn (ocaml/libs/xapi-work-queues).
type pool struct {
	mu     sync.Mutex
	ready  *sync.Cond
	queues map[string][]item
	order  []string        // tags with work, in turn
	busy   map[string]bool // tags that a worker has
}

func newPool() *pool {
	p := &pool{queues: map[string][]item{}, busy: map[string]bool{}}
	p.ready = sync.NewCond(&p.mu)
	return p
}

// push puts work into the queue of tag. The log line has the tag `queue`, as it
// has in xenopsd.
func (p *pool) push(t *node.Thread, tag string, it item) {
	p.mu.Lock()
	var before []string
	for _, o := range p.queues[tag] {
		before = append(before, o.op.JSON())
	}
	redirected := ""
	if p.busy[tag] {
		redirected = "redirected "
	}
	if len(before) == 0 && !p.busy[tag] {
		p.order = append(p.order, tag)
	}
	p.queues[tag] = append(p.queues[tag], it)
	old := t.Tag
	t.Tag = "queue"
	list := strings.Join(before, "; ")
	t.Log(node.Debug, "Xapi_work_queues", "Queue.push %s onto %s%s:[ %s ]", it.op.JSON(), redirected, tag, list)
	t.Tag = old
	p.ready.Signal()
	p.mu.Unlock()
}

// pop waits for work.
func (p *pool) pop(t *node.Thread) (string, item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.order) == 0 {
		p.ready.Wait()
	}
	tag := p.order[0]
	p.order = p.order[1:]
	it := p.queues[tag][0]
	p.queues[tag] = p.queues[tag][1:]
	p.busy[tag] = true
	t.Log(node.Debug, "Xapi_work_queues", "Queue.pop returned %s", it.op.JSON())
	return tag, it
}

// done gives the tag back.
func (p *pool) done(tag string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, tag)
	if len(p.queues[tag]) > 0 {
		p.order = append(p.order, tag)
		p.ready.Signal()
	} else {
		delete(p.queues, tag)
	}
}

// work is the life of a worker.
func (d *daemon) work(t *node.Thread, p *pool) {
	for {
		t.Tag, t.Trace, t.Parent = "", "", ""
		tag, it := p.pop(t)
		d.run(t, it)
		p.done(tag)
	}
}
