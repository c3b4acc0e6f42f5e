package observer

import (
	"encoding/json"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
)

// Counters are the accounts of an endpoint.
type Counters = export.Counters

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
		Recovered     uint64            `json:"recovered,omitempty"` // of produced: found on disk at the start
		Dropped       map[string]uint64 `json:"dropped"`
		LastError     string            `json:"last_error,omitempty"`
		LastErrorTime *time.Time        `json:"last_error_time,omitempty"`
		LastSent      *time.Time        `json:"last_sent,omitempty"`
	}{s.Endpoint, s.State, s.Produced, s.Sent, s.Queued, s.Recovered, s.DroppedByCause(), s.LastError, s.LastErrorTime, s.LastSent})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *EndpointStats) UnmarshalJSON(data []byte) error {
	var in struct {
		Endpoint      string            `json:"endpoint"`
		State         string            `json:"state"`
		Produced      uint64            `json:"produced"`
		Sent          uint64            `json:"sent"`
		Queued        uint64            `json:"queued"`
		Recovered     uint64            `json:"recovered,omitempty"` // of produced: found on disk at the start
		Dropped       map[string]uint64 `json:"dropped"`
		LastError     string            `json:"last_error"`
		LastErrorTime *time.Time        `json:"last_error_time"`
		LastSent      *time.Time        `json:"last_sent"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = EndpointStats{Endpoint: in.Endpoint, State: in.State, LastError: in.LastError, LastErrorTime: in.LastErrorTime, LastSent: in.LastSent,
		Counters: Counters{Produced: in.Produced, Sent: in.Sent, Queued: in.Queued, Recovered: in.Recovered}}
	for i := range s.Dropped {
		s.Dropped[i] = in.Dropped[export.Cause(i).String()]
	}
	return nil
}

// ObserverStats describe one Observer of a Set.
type ObserverStats struct {
	UUID       string           `json:"uuid"`
	NameLabel  string           `json:"name_label"`
	Enabled    bool             `json:"enabled"`
	Here       bool             `json:"here"`                 // its hosts include this one
	Source     string           `json:"source,omitempty"`     // local, or xapi
	Components string           `json:"components"`           // names separated by commas
	Processors *processor.Stats `json:"processors,omitempty"` // nil: it gets no spans
	Warnings   []string         `json:"warnings,omitempty"`
	Endpoints  []EndpointStats  `json:"endpoints"`
}
