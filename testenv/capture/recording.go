// Package capture turns recordings of the real toolstack into the events that
// the kernel side would have made of them, for tests: what the correlator
// makes of those can be compared with the spans that the toolstack itself
// wrote at the same time.
//
// A recording is strace's output for the daemons (testdata/NAME.strace.zst),
// the processes and sockets that were there before (.fds), what the clients
// saw (.client) and the native spans (.native.ndjson.zst). The fixtures are
// made by cmd/cutcapture and hold no secrets: references, passwords and
// cookies are overwritten in place. The recorded system has Python, JSON-RPC
// and xe clients on xapi's unix socket, xenopsd with its simulator back end,
// and message-switch between the two.
//
//   - lifecycle-off: one VM's life cycle, no Observer
//   - lifecycle-on: the same with an Observer
//   - lifecycle-three: with an Observer, two life cycles, JSON-RPC calls and xe at once
//
// The time of an event is the recording's wall time in nanoseconds, so the
// Wall function of a correlate.Config is the identity (see Wall).
package capture

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/redact"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

//go:embed testdata/*.zst testdata/*.fds testdata/*.client
var testdata embed.FS

// Names lists the recordings.
func Names() []string { return []string{"lifecycle-off", "lifecycle-on", "lifecycle-three"} }

// Wall turns an event's time into ns since 1970 for a recording's events.
func Wall(t event.Time) int64 { return int64(t) }

// Recording is one run of the toolstack.
type Recording struct {
	Name      string
	Processes *Processes
	Records   []strace.Record
	Native    []NativeSpan // none if no Observer was enabled
	Clients   []Client
}

// Load reads a recording by name.
func Load(name string) (*Recording, error) {
	r := &Recording{Name: name}
	fds, err := testdata.ReadFile("testdata/" + name + ".fds")
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	if r.Processes, err = ParseProcesses(fds); err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	text, err := unpack(name + ".strace.zst")
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	var skipped int
	if r.Records, skipped, err = strace.ReadAll(bytes.NewReader(text)); err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	if skipped > 0 {
		return nil, fmt.Errorf("recording %s: %d lines are no system calls", name, skipped)
	}
	client, err := testdata.ReadFile("testdata/" + name + ".client")
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	if r.Clients, err = ParseClients(client); err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	native, err := unpack(name + ".native.ndjson.zst")
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	if r.Native, err = ReadNative(bytes.NewReader(native)); err != nil {
		return nil, fmt.Errorf("recording %s: %w", name, err)
	}
	return r, nil
}

func unpack(file string) ([]byte, error) {
	b, err := testdata.ReadFile("testdata/" + file)
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(b, nil)
}

// Events returns the events of a recording as the probes hand them on, redacted,
// in order of Time.
func (r *Recording) Events() []event.Event {
	events := Convert(r.Records, r.Processes).Events
	red := redact.New(0)
	for i := range events {
		red.Event(&events[i])
	}
	return events
}

// Events returns the events of the recording of that name, redacted, for tests
// of what comes after the probes.
func Events(t testing.TB, name string) []event.Event {
	t.Helper()
	r, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return r.Events()
}

// Client is what one client process saw.
type Client struct {
	Name    string // "" if the run had one client
	TraceID string // that it sent, "" if its log does not tell
	Calls   []ClientCall
	Lines   []string // that are no calls
}

// ClientCall is a call as its caller saw it.
type ClientCall struct {
	Method   string
	Duration time.Duration
	Status   string
	Value    string
}

// ParseClients reads a .client file.
func ParseClients(b []byte) ([]Client, error) {
	clients := []Client{{}}
	for n, line := range strings.Split(string(b), "\n") {
		c := &clients[len(clients)-1]
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "==":
			if len(c.Calls)+len(c.Lines) > 0 || c.TraceID != "" {
				clients = append(clients, Client{})
				c = &clients[len(clients)-1]
			}
			c.Name = words[len(words)-1]
		case words[0] == "trace" && len(words) == 2:
			c.TraceID = words[1]
		case len(words) >= 3 && strings.HasSuffix(words[1], "ms"):
			d, err := time.ParseDuration(words[1])
			if err != nil {
				return nil, fmt.Errorf("clients: line %d: %w", n+1, err)
			}
			c.Calls = append(c.Calls, ClientCall{Method: words[0], Duration: d, Status: words[2], Value: strings.Join(words[3:], " ")})
		default:
			c.Lines = append(c.Lines, line)
		}
	}
	return clients, nil
}
