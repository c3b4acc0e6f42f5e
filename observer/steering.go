package observer

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/processor"
	"github.com/xenserver/dtagent/probes/event"
)

// steeringPrefix begins the attributes that steer dtagent itself. XAPI stores
// them like any other; they are not exported.
const steeringPrefix = "dtagent."

// Steering is what the attributes dtagent.* of an Observer say. The zero value
// is that of an Observer without any.
type Steering struct {
	Components    event.Components // asked for besides Observer.Components
	Endpoints     []string         // besides Observer.Endpoints; also otlp+http:// and otlp+https://
	Processor     processor.Config
	WaitThreshold time.Duration   // a wait that takes so long is a span, unless Processor says that none is; 0: the default
	Edit          *export.Edit    // of the tags; nil: none
	BatchInterval time.Duration   // of remote endpoints; 0: the default
	BatchSpans    int             // of remote endpoints; 0: the default
	CAFile        string          // PEM file that https receivers are checked against; "": the agent's
	Metrics       bool            // make metrics from the spans
	Logs          bool            // make log records from the spans
	Tapdisk       TapdiskSteering // which requests of guests it gets: see Requests
	UnderNative   bool            // hang spans under those of the toolstack's own tracing
}

// Steering returns what the attributes dtagent.* say, and warnings, each about
// one mistake: what is wrong or unknown has no effect, and the Observer works
// without it. An empty value is as none. It reads no file.
func (o Observer) Steering() (Steering, []string) {
	if !o.steered() {
		return Steering{}, nil
	}
	s := steerer{hasTapdisk: slices.Contains(o.Components, event.Tapdisk.String())}
	known := 0
	for i := range settings {
		v, ok := o.Attributes[steeringPrefix+settings[i].key]
		if !ok {
			continue
		}
		known++
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		s.key = settings[i].key
		s.given = append(s.given, s.key)
		settings[i].set(&s, v)
	}
	if len(s.given) > 0 {
		s.together()
	}
	s.unknown(o.Attributes, known)
	return s.Steering, s.warnings
}

// waitThreshold is how long a wait must be to be a span.
func (s *Steering) waitThreshold() time.Duration {
	if s.WaitThreshold == 0 {
		return defaultWait
	}
	return s.WaitThreshold
}

// processors is what the Observer's pipeline is told.
func (s *Steering) processors() processor.Config {
	c := s.Processor
	c.MinWait = s.waitThreshold() // other Observers may want shorter ones
	return c
}

// steered tells whether there is any attribute dtagent.*.
func (o Observer) steered() bool {
	for k := range o.Attributes {
		if strings.HasPrefix(k, steeringPrefix) {
			return true
		}
	}
	return false
}

// unknown warns of the steering attributes that do not exist; known of them do.
func (s *steerer) unknown(attributes map[string]string, known int) {
	var keys []string
	for k := range attributes {
		if key, ok := strings.CutPrefix(k, steeringPrefix); ok {
			keys = append(keys, key)
		}
	}
	if len(keys) == known {
		return
	}
	var names []string
	for i := range settings {
		names = append(names, settings[i].key)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if slices.Contains(names, k) {
			continue
		}
		hint := ""
		if n := nearest(k, names); n != "" {
			hint = fmt.Sprintf(", did you mean %s%s?", steeringPrefix, n)
		}
		s.key = shorten(k)
		s.warn("this dtagent has no such setting%s; it has no effect", hint)
	}
}

// Warnings returns what is allowed but probably not meant: the warnings of
// Steering, and an Observer that exports nowhere or to too many.
func (o Observer) Warnings() []string {
	st, out := o.Steering()
	if n := len(o.Endpoints) + len(st.Endpoints); n > maxEndpoints {
		out = append(out, fmt.Sprintf("endpoints: %d, of which the first %d are used", n, maxEndpoints))
	}
	if len(o.endpoints(st)) == 0 {
		out = append(out, `endpoints: none, so its spans go nowhere; add "bugtool" or an http URL`)
	}
	return out
}

// steeringTable returns the table of all settings as Markdown.
func steeringTable() string {
	var b strings.Builder
	b.WriteString("| attribute | value | when absent | meaning | example |\n|---|---|---|---|---|\n")
	for _, s := range settings {
		fmt.Fprintf(&b, "| `%s%s` | %s | %s | %s | `%s` |\n", steeringPrefix, s.key, s.form, s.absent, s.meaning, s.example)
	}
	return b.String()
}
