// Package recordings holds recordings that dtagent has made of simulated dom0s, with
// real eBPF. They are what the demonstration plays where eBPF is not to be had, and
// tests of the correlation: what comes of each stands beside it.
//
// To make the recordings anew, as root, and then what comes of them:
//
//	go test ./testenv/recordings -run TestRecordAndReplay -record
//	go test ./testenv/recordings -run TestGolden -update
//
// and, for that of the demonstration:
//
//	make build && go run ./testenv/cmd/demo --record testenv/recordings/demo.dtrec
package recordings

import "embed"

// FS holds the recordings, *.dtrec.
//
//go:embed *.dtrec
var FS embed.FS

// Demo is the name of the recording of the demonstration.
const Demo = "demo.dtrec"
