package observer

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// TestCloseLeavesQueue: a receiver that does not answer holds up Close only where its
// spans would be lost; those on disk wait for the next agent.
func TestCloseLeavesQueue(t *testing.T) {
	answer := make(chan struct{})
	asked := make(chan struct{}, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		qt.Check(t, qt.Equals(countSpans(t, r), 1))
		asked <- struct{}{}
		select {
		case <-answer:
			w.WriteHeader(http.StatusAccepted)
		case <-r.Context().Done():
		}
	}))
	defer receiver.Close()
	l := fast
	l.DrainTimeout, l.CloseTimeout = 10*time.Minute, 50*time.Millisecond
	o := Options{Host: thisHost, QueueDir: t.TempDir(), Limits: l, NoTrim: true}
	a := enabled(uuidA, receiver.URL)
	a.Attributes = map[string]string{"dtagent.batch.interval": "10ms"}
	closed := func(s *Set) <-chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			qt.Check(t, qt.IsNil(s.Close(context.Background())))
		}()
		return done
	}
	ends := func(done <-chan struct{}) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("Close waits for the receiver")
		}
	}

	s := NewSet(o)
	s.Apply([]Observer{a})
	s.Export(span(event.Xapi, "one"))
	<-asked
	ends(closed(s))
	c := s.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Queued, 1))
	qt.Check(t, qt.Equals(c.Lost(), 0))

	// In memory only: it is waited for.
	o2 := o
	o2.QueueDir = ""
	s = NewSet(o2)
	s.Apply([]Observer{a})
	s.Export(span(event.Xapi, "two"))
	<-asked
	done := closed(s)
	time.Sleep(2 * l.CloseTimeout)
	close(answer)
	ends(done)
	c = s.Totals()
	exact(t, c)
	qt.Check(t, qt.Equals(c.Sent, 1))
	qt.Check(t, qt.Equals(c.Lost(), 0))

	s = NewSet(o)
	s.Apply([]Observer{a})
	eventually(t, "what was left to be sent", func() bool { return s.Totals().Sent == 1 })
	ends(closed(s))
	exact(t, s.Totals())
}
