//go:build linux

package fault

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// TestLagging: what is sent arrives late and in order, also after the delay became
// shorter, and Close ends what is under way.
func TestLagging(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	l := &lagging{Listener: inner, lag: new(lag)}
	client, err := net.Dial("tcp4", inner.Addr().String())
	qt.Assert(t, qt.IsNil(err))
	defer client.Close()
	server, err := l.Accept()
	qt.Assert(t, qt.IsNil(err))

	send := func(text string, delay time.Duration) {
		t.Helper()
		qt.Assert(t, qt.IsNil(l.lag.set(delay)))
		b := []byte(text)
		_, err := server.Write(b)
		qt.Assert(t, qt.IsNil(err))
		clear(b) // it is the caller's again
	}
	begin := time.Now()
	send("late ", 30*time.Millisecond)
	send("soon", 0)
	got := make([]byte, len("late soon"))
	_, err = io.ReadFull(client, got)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(time.Since(begin) >= 30*time.Millisecond))
	qt.Check(t, qt.Equals(string(got), "late soon"))

	send("never", time.Hour)
	qt.Check(t, qt.IsNil(l.Close()))
	_, err = client.Read(got)
	qt.Check(t, qt.Equals(err, io.EOF))
	for err = nil; err == nil; { // the queue takes some
		_, err = server.Write(got)
	}
	qt.Check(t, qt.IsTrue(errors.Is(err, net.ErrClosed)))
	_, err = l.Accept()
	qt.Check(t, qt.IsTrue(errors.Is(err, net.ErrClosed)))
}
