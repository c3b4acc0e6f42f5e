package xapi

import "time"

// Connection says how things stand with XAPI.
type Connection string

// The connections.
const (
	Connecting Connection = "connecting" // not yet reached since the start
	Connected  Connection = "connected"  // the Observers are those of the database
	Lost       Connection = "lost"       // the last known Observers are in force
)

// Status is how a Source is doing.
type Status struct {
	Socket        string     `json:"socket"`
	State         Connection `json:"state"`
	Since         time.Time  `json:"since"`                     // of State
	LastError     string     `json:"last_error,omitempty"`      // also of a connection that is well again
	LastErrorTime *time.Time `json:"last_error_time,omitempty"` // nil: no error yet
	FromStateFile bool       `json:"from_state_file"`           // the Observers in force are those that an agent before this one saw
	StateFile     string     `json:"state_file,omitempty"`
	StateFileErr  string     `json:"state_file_error,omitempty"` // why it could not be read or written; "": it could
	Unsupported   bool       `json:"unsupported,omitempty"`      // this XAPI has no class Observer

	Observers  int    `json:"observers"`  // in State, whether or not enabled or for this host
	Events     uint64 `json:"events"`     // received
	Resyncs    uint64 `json:"resyncs"`    // full reads: one for each connection, and when events did not tell all
	Reconnects uint64 `json:"reconnects"` // tries after a failure
	Applied    uint64 `json:"applied"`    // calls of apply
	Skipped    int    `json:"skipped"`    // Observers beyond the bound, not in State

	Mistakes []Mistake `json:"mistakes,omitempty"`
}

// Mistake is what is wrong with one Observer in the database.
type Mistake struct {
	UUID      string   `json:"uuid,omitempty"` // "" when it has none
	NameLabel string   `json:"name_label,omitempty"`
	Kept      bool     `json:"kept"` // the Observer is in force without what is wrong, or as it was when it was last right
	Errors    []string `json:"errors"`
}
