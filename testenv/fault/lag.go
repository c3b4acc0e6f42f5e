//go:build linux

package fault

import (
	"errors"
	"net"
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
// and without keeping what comes after it.
type lagging struct {
	net.Listener
	lag *lag
}

func (l lagging) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	late := &lateConn{Conn: c, lag: l.lag, queue: make(chan late, lateMost), closed: make(chan struct{})}
	go late.send()
	return late, nil
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

func (c *lateConn) Close() (err error) {
	err = errors.New("closed already")
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}
