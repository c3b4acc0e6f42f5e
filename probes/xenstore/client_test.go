package xenstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv/xenstored"
)

// store starts a xenstored and a client of it.
func store(t *testing.T) (*xenstored.Server, *Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	s, err := xenstored.Start(path)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { s.Close() })
	c, err := Dial(t.Context(), filepath.Join(t.TempDir(), "absent"), path)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { qt.Check(t, qt.IsNil(c.Close())) })
	qt.Check(t, qt.Equals(c.Path(), path))
	return s, c
}

func TestRead(t *testing.T) {
	s, c := store(t)
	s.Set("/local/domain/5/name", "web")
	s.Set("/local/domain/5/empty", "")
	ctx := t.Context()
	v, err := c.Read(ctx, "/local/domain/5/name")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(v, "web"))
	v, err = c.Read(ctx, "/local/domain/5/empty")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(v, ""))
	_, err = c.Read(ctx, "/local/domain/6/name")
	qt.Check(t, qt.ErrorIs(err, syscall.ENOENT))
	qt.Check(t, qt.ErrorMatches(err, "xenstore: read /local/domain/6/name: .*"))
	v, err = c.Optional(ctx, "/local/domain/6/name")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(v, ""))

	names, err := c.Directory(ctx, "/local/domain/5")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(names, []string{"empty", "name"}))
	names, err = c.Directory(ctx, "/local/domain/5/name")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(names, 0))
	names, err = c.Directory(ctx, "/local/domain/6")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(names, 0))
	path, err := c.DomainPath(ctx, 5)
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(path, "/local/domain/5"))

	for i := range 1000 {
		s.Set(fmt.Sprintf("/many/node-%d", i), "")
	}
	_, err = c.Directory(ctx, "/many")
	qt.Check(t, qt.ErrorIs(err, syscall.E2BIG))
	for _, bad := range []string{"", "a\x00b", strings.Repeat("x", 4000)} {
		_, err = c.Read(ctx, bad)
		qt.Check(t, qt.ErrorIs(err, errPath), qt.Commentf("%.10q", bad))
	}
	_, err = c.Read(ctx, "/local/domain/5/name") // none of this has done harm
	qt.Check(t, qt.IsNil(err))
}

func TestWatch(t *testing.T) {
	s, c := store(t)
	ctx := t.Context()
	qt.Assert(t, qt.IsNil(c.Watch(ctx, "/local/domain/0/backend", "b")))
	next := func() Event {
		e, err := c.Next(ctx)
		qt.Assert(t, qt.IsNil(err))
		return e
	}
	qt.Check(t, qt.Equals(next(), Event{Path: "/local/domain/0/backend", Token: "b"}))
	s.Set("/local/domain/5/name", "nobody asked")
	s.Set("/local/domain/0/backend/vbd/5/51712/dev", "xvda")
	qt.Check(t, qt.Equals(next(), Event{Path: "/local/domain/0/backend/vbd/5/51712/dev", Token: "b"}))
	s.Remove("/local/domain/0/backend/vbd/5")
	qt.Check(t, qt.Equals(next(), Event{Path: "/local/domain/0/backend/vbd/5", Token: "b"}))

	// More than are kept: it is said that some are missing, and then it goes on.
	for i := range 2 * maxEvents {
		s.Set("/local/domain/0/backend/vbd/5/51712/state", fmt.Sprint(i))
	}
	_, err := c.Read(ctx, "/local/domain/0/backend/vbd/5/51712/state") // its reply comes after them
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(next(), Event{Missed: true}))
	s.Set("/local/domain/0/backend/x", "")
	qt.Check(t, qt.Equals(next().Path, "/local/domain/0/backend/x"))

	ended, end := context.WithCancel(ctx)
	end()
	_, err = c.Next(ended)
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
}

func TestManyAtOnce(t *testing.T) {
	s, c := store(t)
	for i := range 50 {
		s.Set(fmt.Sprintf("/n/%d", i), fmt.Sprint(i))
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			v, err := c.Read(t.Context(), fmt.Sprintf("/n/%d", i))
			qt.Check(t, qt.IsNil(err))
			qt.Check(t, qt.Equals(v, fmt.Sprint(i)))
		})
	}
	wg.Wait()
}

func TestGone(t *testing.T) {
	s, c := store(t)
	s.Set("/a", "b")
	_, err := c.Read(t.Context(), "/a")
	qt.Assert(t, qt.IsNil(err))
	s.Hangup()
	<-c.Done()
	_, err = c.Read(t.Context(), "/a")
	qt.Check(t, qt.ErrorMatches(err, ".*xenstored has gone|.*reset by peer"))
	_, err = c.Next(t.Context())
	qt.Check(t, qt.IsNotNil(err))

	s, c = store(t)
	qt.Assert(t, qt.IsNil(c.Close()))
	qt.Assert(t, qt.IsNil(c.Close()))
	_, err = c.Read(t.Context(), "/a")
	qt.Check(t, qt.ErrorIs(err, net.ErrClosed))
	_ = s
}

func TestNone(t *testing.T) {
	dir := t.TempDir()
	_, err := Dial(t.Context(), filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	qt.Check(t, qt.ErrorIs(err, ErrNone))
	// A socket that nobody listens on any more.
	ln, err := net.Listen("unix", filepath.Join(dir, "dead"))
	qt.Assert(t, qt.IsNil(err))
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	_, err = Dial(t.Context(), filepath.Join(dir, "dead"))
	qt.Check(t, qt.ErrorIs(err, ErrNone))
	qt.Check(t, qt.ErrorIs(err, syscall.ECONNREFUSED))
}

// A server that never answers is left by those who ask when their context ends.
func TestSilentServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	ln, err := net.Listen("unix", path)
	qt.Assert(t, qt.IsNil(err))
	defer ln.Close()
	c, err := Dial(t.Context(), path)
	qt.Assert(t, qt.IsNil(err))
	defer c.Close()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	_, err = c.Read(ctx, "/a")
	qt.Check(t, qt.ErrorIs(err, context.DeadlineExceeded))
	c.mu.Lock()
	defer c.mu.Unlock()
	qt.Check(t, qt.HasLen(c.waiting, 0))
}

// A pipe stands for the kernel's device: bytes to and fro, no socket.
func TestDevice(t *testing.T) {
	here, there := net.Pipe()
	c := newClient("/dev/xen/xenbus", here)
	defer c.Close()
	go func() {
		m, err := readMessage(there)
		if err != nil {
			return
		}
		b, _ := appendMessage(nil, m.kind, m.id, "value")
		for i := range b { // in single bytes
			there.Write(b[i : i+1])
		}
	}()
	v, err := c.Read(t.Context(), "/a")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(strings.TrimSuffix(v, "\x00"), "value"))
}

// Whatever a server sends, a client neither panics nor takes more than the protocol allows.
func FuzzReadMessage(f *testing.F) {
	for _, parts := range [][]string{{"/local/domain/0/backend", "token"}, {"ENOENT"}} {
		b, err := appendMessage(nil, kindWatchEvent, 7, parts...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(bytes.Repeat([]byte{0xff}, 32))
	f.Add([]byte{15, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(m.payload) > maxPayload || len(m.payload) > len(b) {
			t.Fatalf("%d bytes of payload from %d", len(m.payload), len(b))
		}
		if m.failure() == nil {
			t.Fatal("no failure")
		}
		m.strings()
	})
}

// The same of a whole connection.
func FuzzClient(f *testing.F) {
	b, err := appendMessage(nil, kindRead, 1, "value")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 'E', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		c := newClient("x", here)
		go func() {
			io.ReadFull(there, make([]byte, headerSize+3))
			there.Write(b)
			there.Close()
		}()
		_, err := c.Read(context.Background(), "/a")
		_ = err // it ends
		<-c.Done()
		if _, err := c.Next(context.Background()); err == nil && !errors.Is(err, os.ErrClosed) {
			for { // what came before the end
				if _, err := c.Next(context.Background()); err != nil {
					return
				}
			}
		}
	})
}
