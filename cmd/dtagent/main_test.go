package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/observer/xapi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// dtagent runs one command line.
func dtagent(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = execute(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestExitCodes(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.sock")
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"version"}, 0, ``},
		{[]string{"--help"}, 0, ``},
		{nil, exitUsage, ``},
		{[]string{"frobnicate"}, exitUsage, `unknown command "frobnicate" for "dtagent"`},
		{[]string{"status", "--nonsense"}, exitUsage, `unknown flag: --nonsense`},
		{[]string{"status", "more"}, exitUsage, `unknown command "more" for "dtagent status"`},
		{[]string{"status", "--control", absent}, exitNotRunning, `dtagent is not running: nobody answers on .*absent\.sock\nStart it with .systemctl start dtagent.`},
		{[]string{"trace", "--control", absent}, exitNotRunning, `not running`},
		{[]string{"trace", "--method", "["}, exitUsage, `--method "\["`},
		{[]string{"trace", "--file", absent}, exitFailed, `no such file`},
		{[]string{"run", "--log-level", "loud"}, exitUsage, `there are debug, info, warn and error`},
		{[]string{"observer"}, exitUsage, ``},
		{[]string{"observer", "destroy"}, exitUsage, `uuid=… is missing`},
		{[]string{"observer", "create", "enabled=true"}, exitUsage, `name-label is missing`},
	} {
		code, _, stderr := dtagent(c.args...)
		qt.Check(t, qt.Equals(code, c.code), qt.Commentf("%q: %s", c.args, stderr))
		qt.Check(t, qt.IsTrue(regexp.MustCompile(c.stderr).MatchString(stderr)), qt.Commentf("%q: %s", c.args, stderr))
	}
}

func TestObserverVerbs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "observers.d")
	run := func(args ...string) (int, string, string) {
		return dtagent(append([]string{"observer", "--observers-dir", dir}, args...)...)
	}
	good := func(args ...string) string {
		t.Helper()
		code, out, stderr := run(args...)
		qt.Assert(t, qt.Equals(code, 0), qt.Commentf("%q: %s", args, stderr))
		return strings.TrimSuffix(out, "\n")
	}
	qt.Assert(t, qt.Equals(good("list"), ""))
	id := good("create", "name-label=dt", "enabled=true", "attributes=team:storage", "components=xapi,xenopsd")
	qt.Assert(t, qt.Matches(id, `[0-9a-f-]{36}`))
	qt.Assert(t, qt.Equals(good("list", "--minimal"), id))
	qt.Assert(t, qt.Equals(good("list", "name-label=other", "--minimal"), ""))
	want := `uuid                  ( RO): ` + id + `
           name-label ( RW): dt
     name-description ( RW): 
           host-uuids (SRW): 
           attributes (MRW): team: storage
            endpoints (SRW): bugtool
           components (SRW): xapi; xenopsd
              enabled ( RW): true
`
	qt.Assert(t, qt.Equals(good("list"), want))

	good("param-set", "uuid="+id, "enabled=false", "attributes:note=a,b")
	good("param-add", "uuid="+id, "param-name=endpoints", "param-key=http://127.0.0.1:9411/api/v2/spans")
	good("param-add", "uuid="+id, "param-name=attributes", "more=yes")
	good("param-remove", "uuid="+id, "param-name=attributes", "param-key=team")
	good("param-remove", "uuid="+id, "param-name=components", "param-key=xenopsd")
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=enabled"), "false"))
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=attributes"), "more: yes; note: a,b"))
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=attributes", "param-key=note"), "a,b"))
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=endpoints"), "bugtool; http://127.0.0.1:9411/api/v2/spans"))
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=components"), "xapi"))
	good("param-clear", "uuid="+id, "param-name=attributes")
	qt.Assert(t, qt.Equals(good("param-get", "uuid="+id, "param-name=attributes"), ""))

	var list []observer.Observer
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(good("list", "--json")), &list)))
	qt.Assert(t, qt.HasLen(list, 1))
	qt.Assert(t, qt.Equals(list[0].UUID, id))

	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"param-set", "uuid=" + id, "endpoints=ftp://x"}, exitFailed, `INVALID_VALUE endpoint`},
		{[]string{"param-set", "uuid=" + id}, exitUsage, `nothing to set`},
		{[]string{"param-set", "uuid=nobody", "enabled=true"}, exitFailed, `no such Observer`},
		{[]string{"param-clear", "uuid=" + id, "param-name=enabled"}, exitUsage, `not a list or map`},
		{[]string{"param-get", "uuid=" + id, "param-name=colour"}, exitFailed, `no parameter "colour"`},
		{[]string{"list", "colour=red"}, exitUsage, `parameters are uuid,`},
		{[]string{"destroy", "uuid=" + id, "more=1"}, exitUsage, `"more=1" is not understood here`},
	} {
		code, _, stderr := run(c.args...)
		qt.Check(t, qt.Equals(code, c.code), qt.Commentf("%q: %s", c.args, stderr))
		qt.Check(t, qt.StringContains(stderr, c.stderr), qt.Commentf("%q", c.args))
	}
	good("destroy", "uuid="+id)
	qt.Assert(t, qt.Equals(good("list", "--minimal"), ""))

	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{"), 0o600)))
	code, _, stderr := run("list")
	qt.Assert(t, qt.Equals(code, exitFailed))
	qt.Assert(t, qt.StringContains(stderr, "bad.json"))
}

func TestTraceFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "xapi.ndjson")
	span := `{"traceId":"3100a3ead5c4210a99c27e3e5578158c","id":"0000000000000001","parentId":"34991b6261208b64","kind":"SERVER","name":"VM.start","timestamp":1767225600000000,"duration":1500,"localEndpoint":{"serviceName":"xapi"},"tags":{"dt.link.method":"traceparent"}}`
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte("["+span+"]\n"), 0o600)))
	code, out, _ := dtagent("trace", "--file", file, "--method", "VM.*")
	qt.Assert(t, qt.Equals(code, 0))
	qt.Assert(t, qt.StringContains(out, "└─ VM.start  xapi  +0 µs  1.50 ms  traceparent  100 % self"))
	qt.Assert(t, qt.IsFalse(strings.Contains(out, "\x1b"))) // no terminal, no colours

	code, out, stderr := dtagent("trace", "--file", file, "--min-duration", "1s")
	qt.Assert(t, qt.Equals(code, 0))
	qt.Assert(t, qt.Equals(out, ""))
	qt.Assert(t, qt.StringContains(stderr, "holds no trace that suits"))

	code, out, _ = dtagent("trace", "--file", filepath.Dir(file), "--json")
	qt.Assert(t, qt.Equals(code, 0))
	var tr struct {
		TraceID string `json:"trace_id"`
		Spans   int    `json:"spans"`
	}
	qt.Assert(t, qt.IsNil(json.Unmarshal([]byte(out), &tr)))
	qt.Assert(t, qt.Equals(tr.TraceID, "3100a3ead5c4210a99c27e3e5578158c"))
	qt.Assert(t, qt.Equals(tr.Spans, 1))

	// What can be read is shown, what cannot is said.
	qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte("garbage\n["+span+"]\n"), 0o600)))
	code, out, stderr = dtagent("trace", "--file", file)
	qt.Assert(t, qt.Equals(code, exitFailed))
	qt.Assert(t, qt.StringContains(out, "VM.start"))
	qt.Assert(t, qt.StringContains(stderr, "line 1"))
}

func TestPrintStatus(t *testing.T) {
	dropped := observer.Counters{Produced: 120, Sent: 100, Queued: 5}
	dropped.Dropped[export.QueueFull] = 15
	s := &control.Status{
		Version: "v1.0", PID: 77, UptimeSeconds: 3725, Tier: "modern", Components: []string{"xapi", "xenopsd"},
		Restrictions: []control.Restriction{{Name: "wait: sched:sched_wakeup", State: "wider", Detail: "by tracepoint", Why: "raw tracepoint: the number of a thread is at 2 places", Advice: "nothing"}},
		Targets:      []control.Target{{TGID: 10, Component: "xapi", Program: "xapi"}, {TGID: 11, Component: "xenopsd", Program: "xenopsd-xc"}},
		Probes:       []control.Probe{{Probe: "stream", Program: "dt_e_read", Hook: "syscalls:sys_enter_read", Way: "tracepoint"}, {Probe: "process", Program: "dt_exec", Hook: "sched:sched_process_exec", Way: "tracepoint"}},
		Children:     2, Events: map[string]uint64{"data": 1000, "log": 20},
		Losses: []control.Loss{{Probe: "stream", Cause: "buffer full", Count: 3}, {Probe: "process", Cause: "table of processes full"}, {Probe: "stream", Cause: control.CauseNoStart, Count: 4}, {Probe: "wait", Cause: control.CauseNoSwitch, Count: 2}, {Probe: "wait", Cause: control.CauseNoWakeup, Count: 1}, {Probe: "process", Cause: control.CauseSkipped, Count: 1}}, Handover: control.Handover{Dropped: 1},
		Engine:       correlate.Stats{Stretches: 900, Requests: correlate.RequestStats{Told: 20, Spans: 12, Links: 5, Limited: 6, Held: 1, Bad: 1, Unknown: 2}, Waits: correlate.WaitStats{Spans: 12, Idle: 40, Answered: 3, Dropped: 1}, Spans: 120, Incomplete: 2, Links: map[correlate.Link]uint64{correlate.LinkThread: 100, correlate.LinkNone: 20}},
		ObserversDir: "/etc/dtagent/observers.d",
		XAPI:         &xapi.Status{State: xapi.Lost, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Observers: 2, FromStateFile: true, LastError: "connect: no such file or directory"},
		Totals:       observer.EndpointStats{Endpoint: "all", State: "ok", Counters: observer.Counters{Produced: 247, Recovered: 7, Sent: 227, Queued: 5, Dropped: dropped.Dropped}},
		Observers: []observer.ObserverStats{{UUID: "gone", Endpoints: []observer.EndpointStats{{Endpoint: "http://h:9411/old", State: "draining", Counters: observer.Counters{Produced: 7, Recovered: 7, Sent: 7}}}}, {UUID: "0f0e", NameLabel: "dt", Enabled: true, Here: true, Source: "xapi", Components: "xapi,xenopsd",
			Warnings:   []string{`attribute "dtagent.sampler": "often" is none of always_on, always_off, traceidratio`},
			Processors: &processor.Stats{Received: 130, Passed: 120, Held: 4, Filtered: [processor.NumCauses]uint64{processor.SampledOut: 6}},
			Endpoints:  []observer.EndpointStats{{Endpoint: "bugtool", State: "ok", Counters: observer.Counters{Produced: 120, Sent: 120}}, {Endpoint: "http://h:9411/api/v2/spans", State: "failing", Counters: dropped, LastError: "connection refused"}}}},
		Mistakes:   []control.Mistake{{File: "/etc/dtagent/observers.d/x.json", Error: "/etc/dtagent/observers.d/x.json: line 1: is not JSON", Kept: true}},
		BugtoolDir: "/var/log/dt/zipkinv2/json",
		Process:    control.Process{RSSBytes: 20 << 20, CPUSeconds: 1.5, Goroutines: 12},
	}
	var b bytes.Buffer
	qt.Assert(t, qt.IsNil(printStatus(&b, s)))
	path := filepath.Join("testdata", "status.txt")
	if *update {
		qt.Assert(t, qt.IsNil(os.MkdirAll("testdata", 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(path, b.Bytes(), 0o644)))
	}
	want, err := os.ReadFile(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(b.String(), string(want)))
}
