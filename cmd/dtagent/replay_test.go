package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/testenv/recordings"
)

// golden puts a checked-in recording into a file, cut off after n bytes if n > 0.
func golden(t *testing.T, name string, n int) string {
	t.Helper()
	b, err := recordings.FS.ReadFile(name)
	qt.Assert(t, qt.IsNil(err))
	if n > 0 {
		b = b[:n]
	}
	path := filepath.Join(t.TempDir(), name)
	qt.Assert(t, qt.IsNil(os.WriteFile(path, b, 0o600)))
	return path
}

func TestRecordAndReplayExitCodes(t *testing.T) {
	dir := t.TempDir()
	absent, there := filepath.Join(dir, "absent"), filepath.Join(dir, "there")
	qt.Assert(t, qt.IsNil(os.WriteFile(there, []byte("precious"), 0o600)))
	file := golden(t, "failure.dtrec", 0)
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"record", absent, "--control", absent}, exitNotRunning, "dtagent is not running"},
		{[]string{"record", there, "--control", absent}, exitFailed, "never written over"},
		{[]string{"record"}, exitUsage, "accepts 1 arg"},
		{[]string{"record", absent, "--max-size", "10"}, exitUsage, "at least 1 MiB"},
		{[]string{"record", absent, "--max-size", "many"}, exitUsage, "no size such as"},
		{[]string{"record", absent, "--for", "-1s"}, exitUsage, "less than nothing"},
		{[]string{"replay", absent}, exitFailed, "no such file"},
		{[]string{"replay", there}, exitFailed, "not a recording of dtagent"},
		{[]string{"replay", file, "--speed", "-1"}, exitUsage, "less than nothing"},
		{[]string{"replay", file, "--method", "["}, exitUsage, `--method "["`},
		{[]string{"replay", file, "--to", "ftp://x"}, exitUsage, "--to"},
		{[]string{"replay", file, "--to", "http://x", "--dir", absent}, exitUsage, "one of them"},
		{[]string{"replay", file, "--dir", absent, "--method", "x"}, exitUsage, "--method chooses what is printed"},
		{[]string{"replay", file, "--dir", dir}, exitFailed, "directory not empty"},
	} {
		code, stdout, stderr := dtagent(c.args...)
		qt.Check(t, qt.Equals(code, c.code), qt.Commentf("%q: %s", c.args, stderr))
		qt.Check(t, qt.StringContains(stderr, c.stderr), qt.Commentf("%q", c.args))
		qt.Check(t, qt.Equals(stdout, ""), qt.Commentf("%q", c.args))
	}
	b, err := os.ReadFile(there)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(b), "precious"))
	_, err = os.Stat(absent)
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{"5": 5, "1k": 1 << 10, "64MiB": 64 << 20, "2G": 2 << 30, "1GiB": 1 << 30} {
		var s byteSize
		qt.Check(t, qt.IsNil(s.Set(text)), qt.Commentf("%s", text))
		qt.Check(t, qt.Equals(int64(s), want), qt.Commentf("%s", text))
	}
	for _, text := range []string{"", "M", "-1", "1X", "9999999999G", "1.5M", "99999999999999999999"} {
		qt.Check(t, qt.IsNotNil(new(byteSize).Set(text)), qt.Commentf("%s", text))
	}
}

func TestReplayPrints(t *testing.T) {
	file := golden(t, "failure.dtrec", 0)
	code, out, stderr := dtagent("replay", file)
	qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s", stderr))
	qt.Check(t, qt.StringContains(out, "span 00f067aa0ba902b7 of the caller\n└─ VM.shutdown  xapi"))
	qt.Check(t, qt.StringContains(out, "error: VM_BAD_POWER_STATE"))
	qt.Check(t, qt.StringContains(stderr, "recorded on simulated at 20"))
	qt.Check(t, qt.StringContains(stderr, "note: a simulated dom0"))
	_, again, _ := dtagent("replay", file)
	qt.Check(t, qt.Equals(again, out))
	_, paced, _ := dtagent("replay", file, "--speed", "1000")
	qt.Check(t, qt.Equals(paced, out))

	code, out, _ = dtagent("replay", file, "--json", "--method", "VM.shutdown")
	qt.Assert(t, qt.Equals(code, 0))
	var tr struct {
		TraceID string `json:"trace_id"`
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &tr)))
	qt.Check(t, qt.Equals(tr.TraceID, "4bf92f3577b34da6a3ce929d0e0e4736"))

	code, out, _ = dtagent("replay", golden(t, "start.dtrec", 0), "--count", "1")
	qt.Assert(t, qt.Equals(code, 0))
	qt.Check(t, qt.Equals(strings.Count(out, "trace "), 1))
}

// TestReplayOfTornAndDamaged plays what is good of a recording.
func TestReplayOfTornAndDamaged(t *testing.T) {
	whole := golden(t, "start-traceparent.dtrec", 0)
	info, err := os.Stat(whole)
	qt.Assert(t, qt.IsNil(err))
	torn := golden(t, "start-traceparent.dtrec", int(info.Size())*9/10)
	code, out, stderr := dtagent("replay", torn, "--trace-id", "4bf92f3577b34da6")
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.StringContains(out, "Async.VM.start"))
	qt.Check(t, qt.StringContains(stderr, "the recording was not ended: it ends at byte"))

	b, err := os.ReadFile(whole)
	qt.Assert(t, qt.IsNil(err))
	b[len(b)*9/10] ^= 1
	qt.Assert(t, qt.IsNil(os.WriteFile(whole, b, 0o600)))
	code, out, stderr = dtagent("replay", whole, "--trace-id", "4bf92f3577b34da6")
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(out, "Async.VM.start"))
	qt.Check(t, qt.StringContains(stderr, "the recording is damaged: the checksum of the frame at byte"))
}

func TestReplayWritesFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spans")
	code, out, stderr := dtagent("replay", golden(t, "start-traceparent.dtrec", 0), "--dir", dir, "--json")
	qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s", stderr))
	var sum struct {
		Recording struct{ ID string }
		Events    int
		Spans     int
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &sum)))
	qt.Check(t, qt.IsTrue(sum.Events > 100))
	n := 0
	qt.Assert(t, qt.IsNil(zipkin.ReadPath(dir, func(s zipkin.Span) {
		n++
		qt.Check(t, qt.Equals(s.Tags["xs.observer.name"], "replay"))
		qt.Check(t, qt.Equals(s.Tags["xs.observer.uuid"], sum.Recording.ID))
		qt.Check(t, qt.Equals(s.Tags["xs.host.name"], "simulated"))
	})))
	qt.Check(t, qt.Equals(n, sum.Spans))
	code, out, _ = dtagent("trace", "--file", dir, "--method", "VM_start")
	qt.Check(t, qt.Equals(code, 0))
	qt.Check(t, qt.StringContains(out, "Async.VM.start"))
}

func TestReplaySends(t *testing.T) {
	var spans atomic.Int64
	status := http.StatusAccepted
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status == http.StatusAccepted {
			var all []zipkin.Span
			if json.NewDecoder(r.Body).Decode(&all) != nil {
				http.Error(w, "no zipkin", http.StatusBadRequest)
				return
			}
			spans.Add(int64(len(all)))
		}
		w.WriteHeader(status)
	}))
	defer srv.Close()
	file := golden(t, "start.dtrec", 0)
	code, out, stderr := dtagent("replay", file, "--to", srv.URL+"/api/v2/spans", "--json")
	qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%s", stderr))
	var sum struct {
		Spans int
		Sent  struct{ Spans int }
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &sum)))
	qt.Check(t, qt.IsTrue(sum.Spans > 0))
	qt.Check(t, qt.Equals(sum.Sent.Spans, sum.Spans))
	qt.Check(t, qt.Equals(int(spans.Load()), sum.Spans))

	status = http.StatusForbidden
	code, _, stderr = dtagent("replay", file, "--to", srv.URL+"/api/v2/spans")
	qt.Check(t, qt.Equals(code, exitFailed))
	qt.Check(t, qt.StringContains(stderr, "403"))
}
