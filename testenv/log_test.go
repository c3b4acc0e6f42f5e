//go:build linux

package testenv_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
)

// varying are the parts of log lines that differ from run to run, what they become,
// in this order.
var varying = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`^<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d `), "<$1>DATE "},
	{regexp.MustCompile(`\d{8}T\d\d:\d\d:\d\d\.\d{3}Z`), "DATE"},
	{regexp.MustCompile(`00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]`), "TRACE"},
	{regexp.MustCompile(`[0-9a-fx]{8}-[0-9a-fx]{4}-[0-9a-fx]{4}-[0-9a-fx]{4}-[0-9a-fx]{12}`), "UUID"},
	{regexp.MustCompile(`\b([RDO]):[0-9a-f]{12}\b`), "$1:ID"},
	{regexp.MustCompile(`[0-9a-f]{32}`), "HASH"},
	// Whether a worker has taken the operation before, which waits or is redirected
	// behind it, is a matter of luck.
	{regexp.MustCompile(`onto (redirected )?(\S+):\[.*\]`), "onto $2:[ … ]"},
	// And so is which states of a VM xapi happens to see when it polls.
	{regexp.MustCompile(`power_state <- \w+`), "power_state <- STATE"},
	{regexp.MustCompile(`\bvm(-\d+)?\b|\bdom0\b`), "NAME"},
	{regexp.MustCompile(`\d+(\.\d+)?(e-\d+)?`), "N"},
}

func form(line string) string {
	for _, v := range varying {
		line = v.re.ReplaceAllString(line, v.to)
	}
	return line
}

// unknown are lines that the recording cannot have: its xenopsd made no real
// domains, and it begins after the start of xapi.
var unknown = regexp.MustCompile(`\|xenguesthelper\] |\|xenops_server\] using domid |Initialise Observability `)

// TestLogLinesAreAsRecorded starts a VM like the recorded one and looks whether
// xenopsd and xapi's work on it logs anything that the real ones did not.
func TestLogLinesAreAsRecorded(t *testing.T) {
	known := map[string]bool{}
	for _, c := range recorded(t) {
		if c.Name == "sendto" {
			known[form(string(moved(c)))] = true
		}
	}
	qt.Assert(t, qt.IsTrue(len(known) > 100))
	d := start(t, testenv.Options{Disks: -1, NICs: -1, Knobs: testenv.Knobs{Native: config.NativeOn, LogTrace: true}})
	ctx := timeout(t, 30*time.Second)
	c := client.Unix(d.XapiSocket(), client.Options{Traceparent: traceparent})
	session, err := c.Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	hosts, err := c.Call(ctx, "host.get_all", session)
	qt.Assert(t, qt.IsNil(err))
	call(t, ctx, c, false, "VM.start_on", session, d.VMs()[0].Ref, hosts.([]any)[0], false, false)
	call(t, ctx, c, true, "VM.hard_shutdown", session, d.VMs()[0].Ref)
	time.Sleep(50 * time.Millisecond) // the log's reader is behind
	b, err := os.ReadFile(filepath.Join(d.Dir(), "devlog"))
	qt.Assert(t, qt.IsNil(err))
	seen := 0
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		_, line, _ = strings.Cut(line, " ")
		seen++
		if f := form(line); !known[f] && !unknown.MatchString(line) {
			t.Errorf("not in the recording: %.300s\n  %.300s", line, f)
		}
	}
	qt.Check(t, qt.IsTrue(seen > 60))
}
