// Package xenstore reads xenstore and watches it, as far as the agent needs: over
// xenstored's socket, or the kernel's device where xenstored runs elsewhere. It
// writes nothing.
package xenstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Paths are where xenstored is looked for: its socket, as older and newer
// toolstacks have it, then the kernel's device.
var Paths = []string{"/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus"}

// ErrNone says that no xenstored answers.
var ErrNone = errors.New("no xenstored answers")

// ErrClosed says that the connection has ended.
var ErrClosed = fmt.Errorf("xenstore: %w", net.ErrClosed)

// patience is how long xenstored may take to take a request.
const patience = 10 * time.Second

// maxEvents is how many events wait for Next at most.
const maxEvents = 256

// Event says that something at Path or below it has changed: what, is to be read.
type Event struct {
	Path  string
	Token string // of the watch
	// Missed says that events were lost since Next was called last, for want of
	// room: anything may have changed. Path is empty then.
	Missed bool
}

// Client is a connection. Its methods may be called by several goroutines at once.
type Client struct {
	path string
	conn io.ReadWriteCloser

	write sync.Mutex // held while a request is written
	buf   []byte

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan message // replies, each with room for one
	missed  bool
	err     error // why it ended

	events chan Event
	wake   chan struct{} // something was missed
	done   chan struct{} // closed when it has ended
}

// Dial connects to the first of the paths at which xenstored is; none: Paths. The
// error wraps ErrNone when it is at none of them.
func Dial(ctx context.Context, paths ...string) (*Client, error) {
	if len(paths) == 0 {
		paths = Paths
	}
	var errs []error
	for _, p := range paths {
		conn, err := open(ctx, p)
		if err == nil {
			return newClient(p, conn), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errs == nil {
		errs = []error{fmt.Errorf("there is none of %q", paths)}
	}
	return nil, fmt.Errorf("%w: %w", ErrNone, errors.Join(errs...))
}

func open(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return os.OpenFile(path, os.O_RDWR, 0) // a device that can be polled: Close ends a Read
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

func newClient(path string, conn io.ReadWriteCloser) *Client {
	c := &Client{
		path: path, conn: conn, waiting: map[uint32]chan message{},
		events: make(chan Event, maxEvents), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go c.read()
	return c
}

// Path returns where xenstored was found.
func (c *Client) Path() string { return c.path }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection, and with it all watches. It may be called twice.
func (c *Client) Close() error {
	c.end(ErrClosed)
	return nil
}

// end notes why the connection has ended, once.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	_ = c.conn.Close()
	close(c.done)
}

func (c *Client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read hands on what xenstored sends until the connection ends.
func (c *Client) read() {
	in := bufio.NewReaderSize(c.conn, headerSize+maxPayload)
	for {
		m, err := readMessage(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("xenstored has gone")
			}
			c.end(fmt.Errorf("xenstore: %s: %w", c.path, err))
			return
		}
		if m.kind == kindWatchEvent {
			c.event(m.strings())
			continue
		}
		c.mu.Lock()
		to := c.waiting[m.id]
		delete(c.waiting, m.id)
		c.mu.Unlock()
		if to != nil { // else who asked has given up
			to <- m
		}
	}
}

// event keeps an event for Next.
func (c *Client) event(parts []string) {
	if len(parts) >= 2 {
		select {
		case c.events <- Event{Path: parts[0], Token: parts[1]}:
			return
		default:
		}
	}
	c.mu.Lock()
	c.missed = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Next returns the next event of any watch. It returns an error when ctx ends or
// the connection does.
func (c *Client) Next(ctx context.Context) (Event, error) {
	for {
		c.mu.Lock()
		missed := c.missed
		c.missed = false
		c.mu.Unlock()
		if missed {
			for len(c.events) > 0 { // all that they say is that something has changed
				<-c.events
			}
			return Event{Missed: true}, nil
		}
		select {
		case e := <-c.events:
			return e, nil
		case <-c.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		case <-c.done:
			return Event{}, c.why()
		}
	}
}

// ask sends a request and waits for its reply.
func (c *Client) ask(ctx context.Context, k kind, parts ...string) (message, error) {
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return message{}, c.err
	}
	for c.last++; c.waiting[c.last] != nil; c.last++ {
	}
	id := c.last
	c.waiting[id] = answer
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}
	if err := c.send(k, id, parts); err != nil {
		forget()
		return message{}, err
	}
	select {
	case m := <-answer:
		switch {
		case m.kind == kindError:
			return m, m.failure()
		case m.kind != k:
			return m, fmt.Errorf("xenstore: %w: kind %d for %d", errMessage, m.kind, k)
		}
		return m, nil
	case <-ctx.Done():
		forget()
		return message{}, ctx.Err()
	case <-c.done:
		return message{}, c.why()
	}
}

// send writes a request whole: after one that was written in part the connection
// is of no use.
func (c *Client) send(k kind, id uint32, parts []string) error {
	c.write.Lock()
	defer c.write.Unlock()
	var err error
	if c.buf, err = appendMessage(c.buf[:0], k, id, parts...); err != nil {
		return err
	}
	if d, ok := c.conn.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Now().Add(patience)) // a device may have none
	}
	if _, err = c.conn.Write(c.buf); err != nil {
		c.end(fmt.Errorf("xenstore: %s: %w", c.path, err))
		return c.why()
	}
	return nil
}

// Read returns the value of a node. The error is syscall.ENOENT when there is none.
func (c *Client) Read(ctx context.Context, path string) (string, error) {
	m, err := c.ask(ctx, kindRead, path)
	if err != nil {
		return "", fmt.Errorf("xenstore: read %s: %w", path, err)
	}
	return string(m.payload), nil
}

// Optional is Read of a node that need not be there: "" then.
func (c *Client) Optional(ctx context.Context, path string) (string, error) {
	v, err := c.Read(ctx, path)
	if errors.Is(err, syscall.ENOENT) {
		return "", nil
	}
	return v, err
}

// Directory returns the names of a node's children; none if there is no such node.
// More than fit in 4 KiB are an error, syscall.E2BIG.
func (c *Client) Directory(ctx context.Context, path string) ([]string, error) {
	m, err := c.ask(ctx, kindDirectory, path)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("xenstore: directory %s: %w", path, err)
	}
	return m.strings(), nil
}

// Watch has Next return what changes at path and below it, until the connection
// ends; an event comes at once, too. The node need not be there.
func (c *Client) Watch(ctx context.Context, path, token string) error {
	if _, err := c.ask(ctx, kindWatch, path, token); err != nil {
		return fmt.Errorf("xenstore: watch %s: %w", path, err)
	}
	return nil
}

// DomainPath returns the home of a domain, /local/domain/N.
func (c *Client) DomainPath(ctx context.Context, domid uint32) (string, error) {
	m, err := c.ask(ctx, kindGetDomainPath, fmt.Sprint(domid))
	if err != nil {
		return "", fmt.Errorf("xenstore: domain %d: %w", domid, err)
	}
	s := m.strings()
	if len(s) != 1 {
		return "", fmt.Errorf("xenstore: domain %d: %w", domid, errMessage)
	}
	return s[0], nil
}
