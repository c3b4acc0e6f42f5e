package observer

import (
	"encoding/json"
	"time"

	"github.com/xenserver/dtagent/observer/export"
)

// Counters say what became of the spans that were handed to one endpoint. At
// every moment Produced = Sent + Lost() + Queued.
type Counters struct {
	Produced uint64
	Sent     uint64
	Queued   uint64 // waiting, or with the exporter right now
	Dropped  [export.NumCauses]uint64
}

// Lost returns the sum of Dropped.
func (c Counters) Lost() uint64 {
	var n uint64
	for _, d := range c.Dropped {
		n += d
	}
	return n
}

func (c *Counters) add(d Counters) {
	c.Produced += d.Produced
	c.Sent += d.Sent
	c.Queued += d.Queued
	for i, n := range d.Dropped {
		c.Dropped[i] += n
	}
}

// DroppedByCause returns Dropped by the names of its causes, without zeros.
func (c Counters) DroppedByCause() map[string]uint64 {
	m := map[string]uint64{}
	for i, n := range c.Dropped {
		if n > 0 {
			m[export.Cause(i).String()] = n
		}
	}
	return m
}

// EndpointStats describe one endpoint of one Observer.
type EndpointStats struct {
	Endpoint string // without password
	State    string // ok, failing, draining (its Observer no longer names it), closed
	Counters
	LastError     string
	LastErrorTime *time.Time
	LastSent      *time.Time
}

// MarshalJSON writes the form that dtagent status --json shows.
func (s EndpointStats) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Endpoint      string            `json:"endpoint"`
		State         string            `json:"state"`
		Produced      uint64            `json:"produced"`
		Sent          uint64            `json:"sent"`
		Queued        uint64            `json:"queued"`
		Dropped       map[string]uint64 `json:"dropped"`
		LastError     string            `json:"last_error,omitempty"`
		LastErrorTime *time.Time        `json:"last_error_time,omitempty"`
		LastSent      *time.Time        `json:"last_sent,omitempty"`
	}{s.Endpoint, s.State, s.Produced, s.Sent, s.Queued, s.DroppedByCause(), s.LastError, s.LastErrorTime, s.LastSent})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *EndpointStats) UnmarshalJSON(data []byte) error {
	var in struct {
		Endpoint      string            `json:"endpoint"`
		State         string            `json:"state"`
		Produced      uint64            `json:"produced"`
		Sent          uint64            `json:"sent"`
		Queued        uint64            `json:"queued"`
		Dropped       map[string]uint64 `json:"dropped"`
		LastError     string            `json:"last_error"`
		LastErrorTime *time.Time        `json:"last_error_time"`
		LastSent      *time.Time        `json:"last_sent"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = EndpointStats{Endpoint: in.Endpoint, State: in.State, LastError: in.LastError, LastErrorTime: in.LastErrorTime, LastSent: in.LastSent,
		Counters: Counters{Produced: in.Produced, Sent: in.Sent, Queued: in.Queued}}
	for i := range s.Dropped {
		s.Dropped[i] = in.Dropped[export.Cause(i).String()]
	}
	return nil
}

// ObserverStats describe one Observer of a Set.
type ObserverStats struct {
	UUID       string          `json:"uuid"`
	NameLabel  string          `json:"name_label"`
	Enabled    bool            `json:"enabled"`
	Here       bool            `json:"here"`       // its hosts include this one
	Components string          `json:"components"` // names separated by commas
	Warnings   []string        `json:"warnings,omitempty"`
	Endpoints  []EndpointStats `json:"endpoints"`
}
