package observer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
)

// steered returns an Observer with these settings, "key=value" each.
func steered(words ...string) Observer {
	o := Observer{Endpoints: []string{Bugtool}, Attributes: map[string]string{"custom": "v"}}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		o.Attributes["dtagent."+k] = v
	}
	return o
}

func TestSteering(t *testing.T) {
	st, warnings := steered(
		"components=qemu, xenguest;smapi", "endpoints=otlp+http://10.0.0.9:4318 otlp+https://u:p@c/v1/traces,http://z:9411/api/v2/spans", "sampler=traceidratio", "sampler.arg=0.25",
		"keep.slow=2s", "keep.errors=true", "hold=1m30s", "waits=true", "wait_threshold=250us", "min_duration=500us", "drop=event.*,*.get_*;GET?/rrd*", "redact=enduser.* client.address", "rename=xs.host.name=host.name,a=b",
		"batch.interval=5s", "batch.spans=500", "ca_file=/etc/../etc/ca.pem", "metrics=true", "logs=true",
	).Steering()
	qt.Check(t, qt.HasLen(warnings, 0))
	qt.Check(t, qt.IsTrue(st.Edit.Equal(export.NewEdit([]string{"enduser.*", "client.address"}, map[string]string{"xs.host.name": "host.name", "a": "b"}))))
	st.Edit = nil
	qt.Check(t, qt.DeepEquals(st, Steering{
		Components: event.Of(event.QEMU, event.Xenguest, event.SMAPI),
		Endpoints:  []string{"otlp+http://10.0.0.9:4318", "otlp+https://u:p@c/v1/traces", "http://z:9411/api/v2/spans"},
		Processor: processor.Config{Sampler: processor.TraceIDRatio, Ratio: 0.25, KeepSlow: 2 * time.Second, KeepErrors: true, Hold: 90 * time.Second,
			MinDuration: 500 * time.Microsecond, Drop: []string{"event.*", "*.get_*", "GET?/rrd*"}},
		WaitThreshold: 250 * time.Microsecond, BatchInterval: 5 * time.Second, BatchSpans: 500, CAFile: "/etc/ca.pem", Metrics: true, Logs: true,
	}))
	st, warnings = Observer{Attributes: map[string]string{"custom": "v"}}.Steering()
	qt.Check(t, qt.DeepEquals(st, Steering{}))
	qt.Check(t, qt.HasLen(warnings, 0))
}

// TestSteeringExamples: the examples of the table are right, and do something.
func TestSteeringExamples(t *testing.T) {
	for _, s := range settings {
		words := []string{s.key + "=" + s.example}
		switch s.key {
		case "sampler":
			words = append(words, "sampler.arg=0.1")
		case "sampler.arg":
			words = append(words, "sampler=traceidratio")
		case "tapdisk.slow", "tapdisk.sample":
			words = append(words, "components=tapdisk")
		case "hold":
			words = append(words, "keep.errors=true")
		}
		with, warnings := steered(words...).Steering()
		qt.Check(t, qt.HasLen(warnings, 0), qt.Commentf("%s", s.key))
		without, _ := steered(words[1:]...).Steering()
		qt.Check(t, qt.IsFalse(fmt.Sprintf("%+v", with) == fmt.Sprintf("%+v", without)), qt.Commentf("%s", s.key))
		qt.Check(t, qt.IsTrue(attributeKey.MatchString(steeringPrefix+s.key)), qt.Commentf("XAPI would refuse %s", s.key))
		empty, warnings := steered(s.key + "= ").Steering()
		qt.Check(t, qt.HasLen(warnings, 0), qt.Commentf("%s", s.key))
		qt.Check(t, qt.DeepEquals(empty, Steering{}), qt.Commentf("%s", s.key))
	}
}

// TestSteeringMistakes: each is told, and what is wrong has no effect: nothing
// is filtered by mistake.
func TestSteeringMistakes(t *testing.T) {
	for _, c := range []struct {
		words string // separated by |
		want  string // beginnings of the warnings after the key, separated by |
		st    Steering
	}{
		{"sampler=parentbased_always_on", `sampler": "parentbased_always_on" is not used, as the toolstack records what its callers did not sample, too; write one of always_on, always_off, traceidratio; all`, Steering{}},
		{"sampler=traceid_ratio|sampler.arg=0.1", `sampler": "traceid_ratio" is not a sampler, did you mean traceidratio?; write one of`, Steering{}},
		{"sampler=traceidratio", `sampler": traceidratio without a ratio takes all traces; set dtagent.sampler.arg, such as 0.1`, Steering{Processor: processor.Config{Sampler: processor.TraceIDRatio, Ratio: 1}}},
		{"sampler=traceidratio|sampler.arg=10%", `sampler.arg": "10%" must be a number from 0 to 1, such as 0.1; all traces are taken`, Steering{Processor: processor.Config{Sampler: processor.TraceIDRatio, Ratio: 1}}},
		{"sampler=traceidratio|sampler.arg=NaN", `sampler.arg": "NaN" must be`, Steering{Processor: processor.Config{Sampler: processor.TraceIDRatio, Ratio: 1}}},
		{"sampler=traceidratio|sampler.arg=-1", `sampler.arg": "-1" must be`, Steering{Processor: processor.Config{Sampler: processor.TraceIDRatio, Ratio: 1}}},
		{"sampler.arg=0.1", `sampler.arg": it has no effect without dtagent.sampler=traceidratio`, Steering{}},
		{"sampler=always_on|sampler.arg=0.1", `sampler.arg": it has no effect without dtagent.sampler=traceidratio`, Steering{Processor: processor.Config{}}},
		{"keep.slow=2", `keep.slow": "2" is not a duration; write a number with a unit (us, ms, s, m, h), such as 150ms or 2s`, Steering{}},
		{"keep.slow=-2s", `keep.slow": -2s must be from 0s to 4m55s`, Steering{}},
		{"keep.slow=1h", `keep.slow": 1h0m0s must be from 0s to 4m55s`, Steering{}},
		{"keep.slow=0", ``, Steering{}},
		{"keep.errors=yes", `keep.errors": "yes" must be true or false`, Steering{}},
		{"hold=10s", `hold": it has no effect without dtagent.keep.slow or dtagent.keep.errors`, Steering{Processor: processor.Config{Hold: 10 * time.Second}}},
		{"hold=10s|keep.slow=x", `keep.slow": "x" is not a duration`, Steering{Processor: processor.Config{Hold: 10 * time.Second}}},
		{"hold=10s|keep.slow=8s", `hold": 10s is too short to know what takes 8s; 13s is used`, Steering{Processor: processor.Config{KeepSlow: 8 * time.Second, Hold: 13 * time.Second}}},
		{"hold=6m|keep.errors=true", `hold": 6m0s must be from 1s to 5m`, Steering{Processor: processor.Config{KeepErrors: true}}},
		{"waits=off", `waits": "off" must be true or false; it has no effect`, Steering{}},
		{"wait_threshold=10us", `wait_threshold": 10µs must be from 100µs to 1h; it has no effect`, Steering{}},
		{"wait_threshold=2h", `wait_threshold": 2h0m0s must be from 100µs to 1h; it has no effect`, Steering{}},
		{"wait_threshold=5", `wait_threshold": "5" is not a duration`, Steering{}},
		{"wait_threshold=0", ``, Steering{}},
		{"waits=false|wait_threshold=5ms", `wait_threshold": it has no effect with dtagent.waits=false`, Steering{Processor: processor.Config{NoWaits: true}, WaitThreshold: 5 * time.Millisecond}},
		{"min_duration=-1s", `min_duration": -1s must not be negative`, Steering{}},
		{"drop=a[,VM.*,[b", `drop": pattern "a[" is malformed: a [ without ] or a \ at its end; write a name in which * stands for anything|drop": pattern "[b"`, Steering{Processor: processor.Config{Drop: []string{"VM.*"}}}},
		{"redact=[", `redact": pattern "["`, Steering{}},
		{"rename=a", `rename": "a" must be old=new, such as xs.host.name=host.name`, Steering{}},
		{"rename==a,b=", `rename": "=a" must be old=new|rename": "b=" must be`, Steering{}},
		{"rename=error=x,service.name=y,z=dt.link.method", `rename": "error=x": error is never renamed|rename": "service.name=y": service.name is never renamed|rename": "z=dt.link.method": dt.link.method says how far a span can be trusted`, Steering{}},
		{"rename=a=b,a=c", `rename": "a=c": a is renamed to b already`, Steering{Edit: export.NewEdit(nil, map[string]string{"a": "b"})}},
		{"rename=a=c,b=c", `rename": "b=c": a is renamed to it already`, Steering{Edit: export.NewEdit(nil, map[string]string{"a": "c"})}},
		{"rename=a=" + strings.Repeat("x", 256), `rename": "a=xxx`, Steering{}},
		{"components=qemuu,smapi", `components": no component "qemuu", did you mean qemu?; there are xapi, xenopsd, `, Steering{Components: event.Of(event.SMAPI)}},
		{"components=xenstored", `components": xenstored gives no spans in this version, which lacks a probe for it: the xenstore protocol`, Steering{Components: event.Of(event.Xenstored)}},
		{"components=tapdisk|tapdisk.slow=x", `tapdisk.slow": "x" must be x and a number from 1 to 1000, such as x8`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=x0.5", `tapdisk.slow": "x0.5" must be`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=xNaN", `tapdisk.slow": "xNaN" must be`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=5", `tapdisk.slow": "5" is neither a duration nor a factor; write`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=10us", `tapdisk.slow": 10µs must be from 100µs to 1h; it has no effect`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=0", ``, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.sample=0", `tapdisk.sample": "0" must be a whole number from 1 to 1000000000`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.sample=1/5", `tapdisk.sample": "1/5" must be`, Steering{Components: event.Of(event.Tapdisk)}},
		{"components=tapdisk|tapdisk.slow=off", `tapdisk.slow": off without dtagent.tapdisk.sample leaves no request`, Steering{Components: event.Of(event.Tapdisk), Tapdisk: TapdiskSteering{Off: true}}},
		{"components=tapdisk|tapdisk.slow=off|tapdisk.sample=7", ``, Steering{Components: event.Of(event.Tapdisk), Tapdisk: TapdiskSteering{Off: true, Sample: 7}}},
		{"tapdisk.slow=x5|tapdisk.sample=9", `tapdisk.slow": it has no effect without the component tapdisk; add it to dtagent.components|tapdisk.sample": it has no effect`, Steering{Tapdisk: TapdiskSteering{Factor: 5, Sample: 9}}},
		{"endpoints=ftp://u:secret@h,bugtool", `endpoints": "ftp://u:xxxxx@h": the scheme "ftp" is not supported, only http, https, otlp+http and otlp+https; write bugtool or`, Steering{Endpoints: []string{"bugtool"}}},
		{"endpoints=http://u:sec;ret@h:80/", `endpoints": "http://u:xxxxx": is not a URL|endpoints": "xxxxx": must be bugtool`, Steering{}},
		{"endpoints=ftp://h/?token=CANARY,bugtol", `endpoints": "ftp://h/?token=xxxxx": the scheme|endpoints": "xxxxx": must be bugtool`, Steering{}},
		{"endpoints=bugtol,http://h", `endpoints": "bugtol": must be bugtool`, Steering{Endpoints: []string{"http://h"}}},
		{"batch.interval=1ms", `batch.interval": 1ms must be from 10ms to 1h`, Steering{}},
		{"batch.spans=0", `batch.spans": "0" must be a whole number from 1 to 10000`, Steering{}},
		{"batch.spans=1e3", `batch.spans": "1e3" must be`, Steering{}},
		{"ca_file=ca.pem", `ca_file": "ca.pem" must be an absolute path, such as /etc/dtagent/ca.pem`, Steering{}},
		{"metrics=1|logs=True", `metrics": "1" must be true or false|logs": "True" must be`, Steering{}},
		{"keep_slow=2s", `keep_slow": this dtagent has no such setting, did you mean dtagent.keep.slow?; it has no effect`, Steering{}},
		{"component=qemu|sampler_arg=1|xenstored.slow=1s", `component": this dtagent has no such setting, did you mean dtagent.components?; it has no effect|sampler_arg": this dtagent has no such setting, did you mean dtagent.sampler.arg?|xenstored.slow": this dtagent has no such setting; it has no effect`, Steering{}},
	} {
		st, warnings := steered(strings.Split(c.words, "|")...).Steering()
		var want []string
		if c.want != "" {
			want = strings.Split(c.want, "|")
		}
		qt.Check(t, qt.HasLen(warnings, len(want)), qt.Commentf("%s: %q", c.words, warnings))
		for i := range min(len(warnings), len(want)) {
			qt.Check(t, qt.StringContains(warnings[i], `attribute "dtagent.`+want[i]), qt.Commentf("%s", c.words))
			qt.Check(t, qt.IsFalse(strings.Contains(warnings[i], "secret") || strings.Contains(warnings[i], "sec;")))
		}
		qt.Check(t, qt.IsTrue(st.Edit.Equal(c.st.Edit)), qt.Commentf("%s", c.words))
		st.Edit, c.st.Edit = nil, nil
		qt.Check(t, qt.DeepEquals(st, c.st), qt.Commentf("%s", c.words))
	}
	_, warnings := steered("drop=" + strings.Repeat("a,", 150)).Steering()
	qt.Check(t, qt.DeepEquals(warnings, []string{`attribute "dtagent.drop": 150 items, of which the first 100 are used`}))
}

func TestWants(t *testing.T) {
	qt.Check(t, qt.Equals(steered().Wants(), event.DefaultComponents()))
	qt.Check(t, qt.Equals(steered("components=nonsense").Wants(), event.DefaultComponents()))
	qt.Check(t, qt.Equals(steered("components=qemu").Wants(), event.Of(event.QEMU)))
	o := steered("components=message-switch")
	o.Components = []string{"xapi"}
	qt.Check(t, qt.Equals(o.Wants(), event.Of(event.Xapi, event.MessageSwitch)))
	qt.Check(t, qt.Equals(Observer{Components: []string{"from a later XAPI"}}.Wants(), 0))
}

// TestWarnings: endpoints of both lists count.
func TestWarnings(t *testing.T) {
	none := `endpoints: none, so its spans go nowhere; add "bugtool" or an http URL`
	qt.Check(t, qt.DeepEquals(Observer{}.Warnings(), []string{none}))
	o := steered("endpoints=otlp+http://h")
	o.Endpoints = nil
	qt.Check(t, qt.HasLen(o.Warnings(), 0))
	o = steered("metrics=true")
	o.Endpoints = nil
	qt.Check(t, qt.HasLen(o.Warnings(), 0))
	o = steered("endpoints=otlp+http://h")
	for i := range maxEndpoints {
		o.Endpoints = append(o.Endpoints, fmt.Sprint("http://h", i))
	}
	qt.Check(t, qt.DeepEquals(o.Warnings(), []string{"endpoints: 34, of which the first 32 are used"}))
}

// TestSteeringNotExported: what steers is not told to receivers.
func TestSteeringNotExported(t *testing.T) {
	var keys []string
	for _, kv := range steered("keep.slow=2s", "unknown=1").Tags(thisHost) {
		keys = append(keys, string(kv.Key))
	}
	qt.Check(t, qt.IsTrue(slices.Contains(keys, "custom")))
	qt.Check(t, qt.IsFalse(slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, "dtagent.") })))
}

func TestNearest(t *testing.T) {
	for _, c := range []struct {
		a, b string
		d    int
	}{{"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"abc", "abc", 0}, {"ab", "ba", 2}} {
		qt.Check(t, qt.Equals(distance(c.a, c.b), c.d))
	}
	names := []string{"hold", "keep.slow", "keep.errors", "logs"}
	for in, want := range map[string]string{"Keep-Slow": "keep.slow", "keepslow": "keep.slow", "keep.error": "keep.errors", "holt": "hold", "log": "logs", "old": "hold", "nonsense": "", "": "", strings.Repeat("x", 1000): ""} {
		qt.Check(t, qt.Equals(nearest(in, names), want), qt.Commentf("%q", in))
	}
}

// TestSteeringDocumented: the table in docs/observers.md is that of the code.
func TestSteeringDocumented(t *testing.T) {
	const file, begin, end = "../docs/observers.md", "<!-- the table of settings, made from observer/settings.go: DTAGENT_UPDATE_DOCS=1 go test ./observer -run SteeringDocumented -->\n", "<!-- end of the table -->"
	text, err := os.ReadFile(file)
	qt.Assert(t, qt.IsNil(err))
	before, rest, ok := strings.Cut(string(text), begin)
	table, after, ok2 := strings.Cut(rest, end)
	qt.Assert(t, qt.IsTrue(ok && ok2))
	if os.Getenv("DTAGENT_UPDATE_DOCS") != "" {
		qt.Assert(t, qt.IsNil(os.WriteFile(file, []byte(before+begin+steeringTable()+end+after), 0o644)))
		return
	}
	qt.Assert(t, qt.Equals(table, steeringTable()))
}

func FuzzSteering(f *testing.F) {
	for i, s := range settings {
		f.Add(i, s.example, 0, "")
		f.Add(i, s.example+",x=y [ "+s.example, (i+1)%len(settings), settings[(i+1)%len(settings)].example)
	}
	f.Add(99, "x", 1, "http://u:p,w@h")
	f.Fuzz(func(t *testing.T, i int, v string, j int, w string) {
		key := func(i int) string {
			if i >= 0 && i < len(settings) {
				return settings[i].key
			}
			return v
		}
		o := Observer{Attributes: map[string]string{steeringPrefix + key(i): v, steeringPrefix + key(j): w}}
		st, warnings := o.Steering()
		for _, e := range st.Endpoints {
			if rule, _ := checkEndpoint(e); rule != "" {
				t.Fatalf("%q: %s", e, rule)
			}
		}
		p := st.Processor
		if p.Ratio < 0 || p.Ratio > 1 || p.Hold < 0 || p.Hold > processor.MaxHold || p.KeepSlow < 0 || p.KeepSlow > processor.MaxKeepSlow || p.MinDuration < 0 ||
			len(p.Drop) > maxItems || st.BatchSpans < 0 || st.BatchSpans > maxBatchSpans || st.BatchInterval < 0 {
			t.Fatalf("%+v", st)
		}
		if p.Sampler == processor.AlwaysOff && strings.TrimSpace(v) != "always_off" && strings.TrimSpace(w) != "always_off" || p.Sampler == processor.TraceIDRatio && p.Ratio == 0 && len(warnings) > 0 {
			t.Fatalf("all traces dropped by mistake: %q %q", o.Attributes, warnings)
		}
		for _, w := range warnings {
			if len(w) > 3000 {
				t.Fatalf("a warning of %d bytes", len(w))
			}
		}
		again, _ := o.Steering()
		if !again.Processor.Equal(p) || !again.Edit.Equal(st.Edit) {
			t.Fatal("not the same twice")
		}
	})
}

func BenchmarkSteering(b *testing.B) {
	for _, o := range []Observer{steered(), steered("components=qemu", "keep.slow=2s", "drop=event.*,*.get_*", "redact=enduser.*")} {
		b.Run(fmt.Sprint(len(o.Attributes)-1), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				o.Steering()
			}
		})
	}
}
