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

import (
	"bytes"
	"embed"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/xenserver/dtagent/probes/recording"
)

// FS holds the recordings, *.dtrec.
//
//go:embed *.dtrec
var FS embed.FS

// Demo is the name of the recording of the demonstration.
const Demo = "demo.dtrec"

// Keep copies a recording to be checked in, without what tells the machine on which
// it was made from others: of the kernel's release its version is left.
func Keep(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := recording.NewReader(in)
	if err != nil {
		return err
	}
	defer r.Close()
	h := *r.Header()
	h.Kernel, _, _ = strings.Cut(h.Kernel, "-")
	var out bytes.Buffer
	w, err := recording.NewWriter(&out, &h, true)
	if err != nil {
		return err
	}
	var b recording.Block
	for err = r.ReadBlock(&b); err == nil; err = r.ReadBlock(&b) {
		if err := w.Block(&b); err != nil {
			return err
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if err := w.End(r.Trailer().Reason); err != nil {
		return err
	}
	return os.WriteFile(to, out.Bytes(), 0o644)
}
