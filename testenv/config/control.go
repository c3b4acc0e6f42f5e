package config

import "encoding/json"

// Command is one line to the launcher, and from it to each process.
type Command struct {
	Set   *Knobs `json:"set,omitempty"`
	Flush bool   `json:"flush,omitempty"`
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
	VMs       []VM           `json:"vms"`
}
