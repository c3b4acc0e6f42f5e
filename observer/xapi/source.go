// Package xapi follows the Observer objects in the pool's database: over XAPI's
// local socket, on coordinator and member alike, through restarts of the
// toolstack. It only reads.
package xapi

import (
	"log/slog"
	"time"

	"github.com/xenserver/dtagent/observer"
)

// DefaultSocket is XAPI's own. Its directory is open to root only, and who
// connects there counts as logged in as root.
const DefaultSocket = "/var/lib/xcp/xapi"

// Options of a Source. Zero values mean the defaults.
type Options struct {
	Socket    string       // "": DefaultSocket
	StateFile string       // where the last State is kept, mode 0600; "": nowhere
	HostUUID  string       // of this host: INSTALLATION_UUID of /etc/xensource-inventory; "": not known
	Version   string       // of dtagent, for the user agent; "": devel
	Log       *slog.Logger // nil: discarded

	EventTimeout time.Duration // how long XAPI may wait for an event before it answers; 30 s
	CallTimeout  time.Duration // of any call, and of event.from beyond EventTimeout; 20 s
	ApplyEvery   time.Duration // shortest time from one apply to the next; 250 ms
	SaveEvery    time.Duration // shortest time from one write of the state file to the next; 1 s
	SaveRetry    time.Duration // pause after a write of it that failed; 10 s
	BackoffMin   time.Duration // pause after a first failure, doubled each time; 200 ms
	BackoffMax   time.Duration // 10 s, but 2 s for the first two minutes; 0.5 s while nobody listens on the socket
}

func (o Options) withDefaults() Options {
	times := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.Version == "" {
		o.Version = "devel"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	times(&o.EventTimeout, 30*time.Second)
	times(&o.CallTimeout, 20*time.Second)
	times(&o.ApplyEvery, 250*time.Millisecond)
	times(&o.SaveEvery, time.Second)
	times(&o.SaveRetry, 10*time.Second)
	times(&o.BackoffMin, 200*time.Millisecond)
	times(&o.BackoffMax, 10*time.Second)
	return o
}

// State is what the pool's database says, or last said.
type State struct {
	// Observers are in the order of their uuids, also those that are disabled
	// or meant for other hosts. Their Hosts are uuids; of a host that XAPI does
	// not know any more the reference is left. What XAPI should not have stored
	// (Observer.Validate) is left out and shown by Status.
	Observers []observer.Observer `json:"observers"`
	Host      observer.Host       `json:"host"` // zero fields: not known
}

func (s State) clone() State {
	obs := make([]observer.Observer, len(s.Observers))
	for i, o := range s.Observers {
		obs[i] = o.Clone()
	}
	s.Observers = obs
	return s
}
