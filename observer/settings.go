package observer

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/glob"
	"github.com/xenserver/dtagent/observer/masked"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// setting is one attribute dtagent.*.
type setting struct {
	key     string // without steeringPrefix
	form    string // of its value
	absent  string // what holds without it
	meaning string
	example string
	set     func(s *steerer, value string)
}

// settings is the table of all. The table in docs/observers.md is made from it.
var settings = []setting{
	{"components", "names of components", "none",
		"components that are traced besides those of `components`, also those that XAPI cannot store; `dtagent check --components` lists them. When both lists are empty: all that are not costly",
		"xenguest,message-switch", (*steerer).components},
	{"endpoints", "endpoints", "none",
		"endpoints besides those of `endpoints`, also those that XAPI would refuse: `otlp+http://…` and `otlp+https://…`",
		"otlp+http://10.0.0.9:4318", (*steerer).endpoints},
	{"sampler", "`always_on`, `always_off`, `traceidratio`", "`always_on`",
		"which traces are taken, by trace id alone and as OpenTelemetry's Go SDK does, so every host takes the same. The sampled flag of a caller's `traceparent` does not count, as in the toolstack",
		"traceidratio", (*steerer).sampler},
	{"sampler.arg", "0 to 1", "1",
		"ratio of the traces that `traceidratio` takes",
		"0.1", (*steerer).ratio},
	{"keep.slow", "duration, at most " + durationText(processor.MaxKeepSlow), "off",
		"only local trees that take at least so long from first start to last end",
		"2s", func(s *steerer, v string) { s.duration(v, &s.Processor.KeepSlow, 0, processor.MaxKeepSlow) }},
	{"keep.errors", "`true`, `false`", "`false`",
		"only local trees in which a span failed; with `keep.slow`: either is enough",
		"true", func(s *steerer, v string) { s.bool(v, &s.Processor.KeepErrors) }},
	{"hold", "duration, 1s to " + durationText(processor.MaxHold), durationText(processor.DefaultHold) + ", or " + durationText(processor.SlowMargin) + " more than `keep.slow`",
		"how long a local tree that shows no reason to be kept is held before it is filtered unfinished",
		"1m", func(s *steerer, v string) { s.duration(v, &s.Processor.Hold, time.Second, processor.MaxHold) }},
	{"waits", "`true`, `false`", "`true`",
		"spans of long waits: for a lock, a file, the hypervisor, …",
		"false", (*steerer).waits},
	{"wait_threshold", "duration, 100us to 1h", "1ms",
		"a wait that takes at least so long is a span",
		"10ms", func(s *steerer, v string) { s.duration(v, &s.WaitThreshold, minWait, time.Hour) }},
	{"tapdisk.slow", "`x` and a factor, duration, `off`", "`x" + strconv.Itoa(DefaultFactor) + "`",
		"from when on a guest's disk request is a span, with the component `tapdisk`: so many times what 99 of 100 such requests of the disk take, and at least " + durationText(LeastSlow) +
			" (" + durationText(UnlearnedSlow) + " until that is learned); or a time from " + durationText(minSlow) + " to " + durationText(maxSlow),
		"50ms", (*steerer).tapdiskSlow},
	{"tapdisk.sample", "1 to " + strconv.Itoa(maxSample), "none",
		"one of so many disk requests is a span, too, however long it takes",
		"10000", (*steerer).tapdiskSample},
	{"min_duration", "duration", "off",
		"filters shorter spans, but none that failed or is incomplete",
		"500us", func(s *steerer, v string) { s.duration(v, &s.Processor.MinDuration, 0, math.MaxInt64) }},
	{"drop", "patterns", "none",
		"filters spans with a matching name, failed or not",
		"event.*,*.get_*,GET?/rrd*", func(s *steerer, v string) { s.patterns(v, &s.Processor.Drop) }},
	{"redact", "patterns", "none",
		"the value of each attribute whose key matches, before or after renaming, becomes `" + export.Redacted + "`",
		"enduser.*,client.address", func(s *steerer, v string) { s.patterns(v, &s.redact) }},
	{"rename", "`old=new`", "none",
		"renames attributes, all at once; where there is one of the new name already, the renamed one takes its place",
		"xs.host.name=host.name", (*steerer).renames},
	{"native_parent", "`true`, `false`", "`false`",
		"hang what the toolstack's daemons send under the span of the toolstack's own tracing that sent it, where its id was seen: see [Beside the toolstack's own tracing](#beside-the-toolstacks-own-tracing)",
		"true", func(s *steerer, v string) { s.bool(v, &s.UnderNative) }},
	{"batch.interval", "duration, 10ms to 1h", "30s",
		"how often a remote endpoint is sent to when there is little to send",
		"5s", func(s *steerer, v string) { s.duration(v, &s.BatchInterval, 10*time.Millisecond, time.Hour) }},
	{"batch.spans", "1 to " + strconv.Itoa(maxBatchSpans), "10000",
		"most spans in one request to a remote endpoint; as many waiting are sent at once",
		"1000", (*steerer).batchSpans},
	{"ca_file", "absolute path", "`--ca-file`, else the system's and the pool's",
		"PEM file of the CA certificates that https endpoints are checked against",
		"/etc/dtagent/ca.pem", (*steerer).caFile},
	{"metrics", "`true`, `false`", "`false`",
		"make metrics from the spans: requests, errors, durations",
		"true", func(s *steerer, v string) { s.bool(v, &s.Metrics) }},
	{"logs", "`true`, `false`", "`false`",
		"make log records of the spans' begins and ends",
		"true", func(s *steerer, v string) { s.bool(v, &s.Logs) }},
}

const (
	maxBatchSpans = 10_000
	maxItems      = 100 // of one list

	defaultWait = time.Millisecond
	minWait     = 100 * time.Microsecond // shorter ones are too many
)

// steerer reads the settings of one Observer.
type steerer struct {
	Steering
	redact []string
	rename map[string]string

	wrongSampler bool
	hasTapdisk   bool // the component is in the Observer's own list

	key      string // of the setting that is being read
	given    []string
	warnings []string
}

// warn tells what is wrong with the setting that is being read, or with an item
// of it.
func (s *steerer) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf("attribute %q: ", steeringPrefix+s.key)+fmt.Sprintf(format, args...))
}

// has tells whether one of the settings is given, right or wrong.
func (s *steerer) has(keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(s.given, k) })
}

// items splits a list at commas, semicolons and blanks: xe gives no way to
// write a comma in attributes=.
func (s *steerer) items(v string) []string {
	items := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ';' || r == ' ' || r == '\t' || r == '\n' || r == '\r' })
	if len(items) > maxItems {
		s.warn("%d items, of which the first %d are used", len(items), maxItems)
		items = items[:maxItems]
	}
	return items
}

func (s *steerer) components(v string) {
	for _, name := range s.items(v) {
		c, err := event.ParseComponent(name)
		if err != nil {
			s.warn("no component %q%s; there are %s", shorten(name), didYouMean(name, strings.Split(event.AllComponents.String(), ",")),
				strings.ReplaceAll(event.AllComponents.String(), ",", ", "))
			continue
		}
		if lacks := c.Lacks(); lacks != "" {
			s.warn("%s gives no spans in this version, which lacks a probe for it: %s", c, lacks)
		}
		s.Components |= event.Of(c)
	}
}

func (s *steerer) endpoints(v string) {
	cut := false // this may be the rest of a URL with a separator in its password or query
	for _, e := range s.items(v) {
		_, behind, isURL := strings.Cut(e, "://")
		shown := masked.Endpoint(e)
		if cut && !isURL {
			shown = masked.Hidden
		}
		cut = cut || strings.ContainsAny(behind, ":?#")
		if rule, advice := checkEndpoint(e); rule != "" {
			s.warn("%q: %s; %s", shorten(shown), rule, advice)
			continue
		}
		if !slices.Contains(s.Endpoints, e) {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

func (s *steerer) sampler(v string) {
	names := []string{"always_on", "always_off", "traceidratio"} // in the order of processor's
	i := slices.Index(names, v)
	switch {
	case i >= 0:
		s.Processor.Sampler, s.Processor.Ratio = processor.Sampler(i), 1
		return
	case strings.HasPrefix(v, "parentbased"):
		s.warn(`%q is not used, as the toolstack records what its callers did not sample, too; write one of %s; all traces are taken`, shorten(v), strings.Join(names, ", "))
	default:
		s.warn("%q is not a sampler%s; write one of %s, such as traceidratio with %ssampler.arg=0.1; all traces are taken", shorten(v), didYouMean(v, names), strings.Join(names, ", "), steeringPrefix)
	}
	s.wrongSampler = true
}

func (s *steerer) ratio(v string) {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		s.warn("%q must be a number from 0 to 1, such as 0.1; all traces are taken", shorten(v))
		return
	}
	s.Processor.Ratio = f
}

// duration reads 0, which means the default, or one from lo to hi.
func (s *steerer) duration(v string, to *time.Duration, lo, hi time.Duration) {
	d, err := time.ParseDuration(v)
	switch {
	case err != nil:
		s.warn("%q is not a duration; write a number with a unit (us, ms, s, m, h), such as 150ms or 2s; it has no effect", shorten(v))
	case d != 0 && (d < lo || d > hi) && hi == math.MaxInt64:
		s.warn("%s must not be negative; it has no effect", d)
	case d != 0 && (d < lo || d > hi):
		s.warn("%s must be from %s to %s; it has no effect", d, durationText(lo), durationText(hi))
	default:
		*to = d
	}
}

func (s *steerer) bool(v string, to *bool) {
	switch v {
	case "true":
		*to = true
	case "false":
		*to = false
	default:
		s.warn("%q must be true or false; it has no effect", shorten(v))
	}
}

func (s *steerer) waits(v string) {
	on := true
	s.bool(v, &on)
	s.Processor.NoWaits = !on
}

func (s *steerer) patterns(v string, to *[]string) {
	for _, p := range s.items(v) {
		if _, err := glob.Parse(p); err != nil {
			s.warn(`%v; write a name in which * stands for anything, ? for one character and [a-z] for one of a set, such as VM.*; it has no effect`, err)
			continue
		}
		*to = append(*to, p)
	}
}

func (s *steerer) renames(v string) {
	taken := map[string]string{} // old by new
	for _, item := range s.items(v) {
		from, to, ok := strings.Cut(item, "=")
		other, twice := s.rename[from]
		first, clash := taken[to]
		switch {
		case !ok || from == "" || to == "":
			s.warn("%q must be old=new, such as xs.host.name=host.name; it has no effect", shorten(item))
		case len(to) > 255 || strings.ContainsFunc(to, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd }):
			s.warn("%q: the new name must have at most 255 characters, all of them printable; it has no effect", shorten(item))
		case !export.Editable(attribute.Key(from)):
			s.warn("%q: %s is never renamed; it has no effect", shorten(item), from)
		case !export.CanName(attribute.Key(to)):
			s.warn("%q: %s says how far a span can be trusted, nothing else may take its name; it has no effect", shorten(item), to)
		case twice:
			s.warn("%q: %s is renamed to %s already; it has no effect", shorten(item), from, shorten(other))
		case clash:
			s.warn("%q: %s is renamed to it already; it has no effect", shorten(item), shorten(first))
		default:
			if s.rename == nil {
				s.rename = map[string]string{}
			}
			s.rename[from], taken[to] = to, from
		}
	}
}

func (s *steerer) batchSpans(v string) {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxBatchSpans {
		s.warn("%q must be a whole number from 1 to %d; it has no effect", shorten(v), maxBatchSpans)
		return
	}
	s.BatchSpans = n
}

func (s *steerer) caFile(v string) {
	if !filepath.IsAbs(v) {
		s.warn("%q must be an absolute path, such as /etc/dtagent/ca.pem; it has no effect", shorten(v))
		return
	}
	s.CAFile = filepath.Clean(v)
}

// together looks at settings that depend on each other. A mistake in one of
// them was told already.
func (s *steerer) together() {
	p := &s.Processor
	switch {
	case p.Sampler != processor.TraceIDRatio:
		p.Ratio = 0
		if s.key = "sampler.arg"; s.has(s.key) && !s.wrongSampler {
			s.warn("it has no effect without %ssampler=traceidratio", steeringPrefix)
		}
	case !s.has("sampler.arg"):
		s.key = "sampler"
		s.warn("traceidratio without a ratio takes all traces; set %ssampler.arg, such as 0.1", steeringPrefix)
	}
	if s.key = "wait_threshold"; p.NoWaits && s.has(s.key) {
		s.warn("it has no effect with %swaits=false", steeringPrefix)
	}
	for _, key := range []string{"tapdisk.slow", "tapdisk.sample"} {
		if s.key = key; s.has(key) && !s.hasTapdisk && !s.Components.Has(event.Tapdisk) {
			s.warn("it has no effect without the component tapdisk; add it to %scomponents", steeringPrefix)
		}
	}
	if s.key = "tapdisk.slow"; s.Tapdisk.Off && s.Tapdisk.Sample == 0 {
		s.warn("off without %stapdisk.sample leaves no request to be told", steeringPrefix)
	}
	s.key = "hold"
	switch slow := p.KeepSlow + processor.SlowMargin; {
	case p.Hold == 0:
	case !s.has("keep.slow", "keep.errors"):
		s.warn("it has no effect without %[1]skeep.slow or %[1]skeep.errors", steeringPrefix)
	case p.KeepSlow > 0 && p.Hold < slow:
		s.warn("%s is too short to know what takes %s; %s is used", durationText(p.Hold), durationText(p.KeepSlow), durationText(slow))
		p.Hold = slow
	}
	s.Edit = export.NewEdit(s.redact, s.rename)
}

// durationText writes 5m0s as 5m.
func durationText(d time.Duration) string {
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}
