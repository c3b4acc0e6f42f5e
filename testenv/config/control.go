package config

import (
	"encoding/json"
	"path/filepath"
)

// Command is one line to the launcher, and from it to each process.
type Command struct {
	Set   *Knobs `json:"set,omitempty"`
	Flush bool   `json:"flush,omitempty"`

	Restart        *Restart `json:"restart,omitempty"` // for the launcher alone
	ExpireSessions bool     `json:"expire_sessions,omitempty"`
	ForgetEvents   bool     `json:"forget_events,omitempty"`
}

// Answer is one line back.
type Answer struct {
	Err   string          `json:"err,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// Ready is the launcher's first answer.
type Ready struct {
	Binary    string         `json:"binary"`
	Processes map[string]int `json:"processes"`
	Port      uint16         `json:"port"`
	TLSPort   uint16         `json:"tls_port"`
	Host      string         `json:"host"`
	HostRef   string         `json:"host_ref"`
	HostName  string         `json:"host_name"`
	Pool      string         `json:"pool"`
	PoolRef   string         `json:"pool_ref"`
	VMs       []VM           `json:"vms"`
}

// ProcDir is the directory of a dom0's files that shows its processes.
func ProcDir(dir string) string { return filepath.Join(dir, "processes") }

// Restart is an order to end programs and start them again.
type Restart struct {
	Program Program `json:"program"`
	Outage  Outage  `json:"outage"`
}
