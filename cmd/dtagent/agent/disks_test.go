package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/probes/guestio"
)

// askedProbe notes what it is asked for.
type askedProbe struct {
	asked []string
	err   error
}

func (p *askedProbe) Follow(_ context.Context, w guestio.Want) (func(), error) {
	what := fmt.Sprintf("%v %v %v %d", w.Slow[0], w.Factor, w.Floor, w.Sample)
	if p.err != nil {
		p.asked = append(p.asked, "failed "+what)
		return nil, p.err
	}
	p.asked = append(p.asked, "follow "+what)
	return func() { p.asked = append(p.asked, "leave "+what) }, nil
}

func TestRequestsFollowTheObservers(t *testing.T) {
	p := &askedProbe{}
	r := requests{probe: p}
	asks := func(w observer.Requests, want ...string) {
		t.Helper()
		p.asked = nil
		err := r.follow(t.Context(), w)
		qt.Check(t, qt.DeepEquals(p.asked, want))
		qt.Check(t, qt.Equals(errors.Is(err, errNoRequests), p.err != nil))
	}
	asks(observer.Requests{})
	asks(observer.Requests{Factor: 8}, "follow 100ms 8 20ms 0")
	asks(observer.Requests{Factor: 8})
	asks(observer.Requests{Factor: 8, Sample: 100, Slow: time.Second}, "follow 1s 0 0s 0", "follow 0s 0 0s 100")
	asks(observer.Requests{Factor: 5, Sample: 100, Slow: time.Second}, "follow 100ms 5 20ms 0", "leave 100ms 8 20ms 0")
	p.err = errors.New("no xenstored answers")
	asks(observer.Requests{Factor: 5, Sample: 9, Slow: time.Second}, "failed 0s 0 0s 9", "leave 0s 0 0s 100")
	p.err = nil
	asks(observer.Requests{Factor: 5, Sample: 9, Slow: time.Second}, "follow 0s 0 0s 9") // tried again
	asks(observer.Requests{Slow: time.Second, Sample: 9}, "leave 100ms 5 20ms 0")
	asks(observer.Requests{Slow: time.Second}, "leave 0s 0 0s 9")
	asks(observer.Requests{}, "leave 1s 0 0s 0")
	qt.Check(t, qt.HasLen(r.held, 0))
}
