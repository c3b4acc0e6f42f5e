//go:build linux

package fault

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// lag is a delay that can be changed while others use it.
type lag struct{ ns atomic.Int64 }

func (l *lag) set(d time.Duration) error {
	l.ns.Store(int64(d))
	return nil
}

func (l *lag) get() time.Duration { return time.Duration(l.ns.Load()) }

// lagging is a listener on whose connections everything is sent late, in order
// and without keeping what comes after it. They end with it.
type lagging struct {
	net.Listener
	lag *lag

	mu     sync.Mutex
	closed bool
	conns  []*lateConn
}

func (l *lagging) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &lateConn{Conn: inner, lag: l.lag, queue: make(chan late, lateMost), closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		inner.Close()
		return nil, net.ErrClosed
	}
	l.conns = slices.DeleteFunc(l.conns, (*lateConn).isClosed)
	l.conns = append(l.conns, c)
	go c.send()
	return c, nil
}

func (l *lagging) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, c := range l.conns {
		c.Close() // most are closed already
	}
	return l.Listener.Close()
}

// lateMost is how many writes can be under way on a connection; the next waits.
const lateMost = 1024

type late struct {
	due   time.Time
	bytes []byte
}

type lateConn struct {
	net.Conn
	lag    *lag
	queue  chan late
	once   sync.Once
	closed chan struct{}
}

func (c *lateConn) Write(b []byte) (int, error) {
	select {
	case c.queue <- late{time.Now().Add(c.lag.get()), append([]byte(nil), b...)}:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *lateConn) send() {
	for {
		select {
		case w := <-c.queue:
			select {
			case <-time.After(time.Until(w.due)):
			case <-c.closed:
				return
			}
			if _, err := c.Conn.Write(w.bytes); err != nil {
				c.Close()
				return
			}
		case <-c.closed:
			return
		}
	}
}

func (c *lateConn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func (c *lateConn) Close() (err error) {
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}
