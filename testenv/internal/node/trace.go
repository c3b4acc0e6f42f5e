//go:build linux

package node

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
)

// Context is a trace context as the toolstack keeps it.
type Context struct {
	TraceID string // 32 digits, "" for none
	SpanID  string // 16 digits
	Depth   int    // baggage span.depth
}

// Parse takes a traceparent as xapi does: version 00, four parts, flags ignored.
func Parse(traceparent string) (Context, bool) {
	f := strings.Split(strings.TrimSpace(traceparent), "-")
	if len(f) != 4 || f[0] != "00" {
		return Context{}, false
	}
	return Context{TraceID: strings.ToLower(f[1]), SpanID: strings.ToLower(f[2]), Depth: 1}, true
}

// String is c as a traceparent, with the flags that the toolstack always sends.
func (c Context) String() string {
	if c.TraceID == "" {
		return ""
	}
	return "00-" + c.TraceID + "-" + c.SpanID + "-01"
}

// Child is a new span below c; without a trace in c, the root of a new one.
func (c Context) Child() Context {
	if c.TraceID == "" {
		return Context{TraceID: fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()), SpanID: span(), Depth: 1}
	}
	return Context{TraceID: c.TraceID, SpanID: span(), Depth: c.Depth + 1}
}

func span() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// NewSpan makes the thread's current native span one below parent and shows it in log
// field two. Without native tracing there is none.
func (t *Thread) NewSpan(parent Context) Context {
	if t.P.Native() == config.NativeOff {
		t.Trace = ""
		return Context{}
	}
	c := parent.Child()
	t.Trace = c.String()
	return c
}

// DebugInfo is the dbg or debug_info parameter for a log tag and a context.
func (p *Proc) DebugInfo(tag string, c Context) string {
	if c.TraceID == "" {
		return tag
	}
	if p.Native() == config.NativeBare {
		return tag + "\n" + c.String()
	}
	return fmt.Sprintf("%s\n{\"traceparent\":%q,\"baggage\":[[\"span.depth\",\"%d\"]]}", tag, c, c.Depth)
}

// ParseDebugInfo takes a debug_info apart. More than one newline makes all of
// it a tag, as the toolstack has it.
func ParseDebugInfo(s string) (tag string, c Context) {
	tag, rest, ok := strings.Cut(s, "\n")
	if !ok || strings.Contains(rest, "\n") {
		return s, Context{}
	}
	if i := strings.Index(rest, `"traceparent":"`); i >= 0 {
		rest = rest[i+len(`"traceparent":"`):]
		rest, _, _ = strings.Cut(rest, `"`)
	}
	c, _ = Parse(rest)
	return tag, c
}

// traceEnv leads the environment of a child of a traced process.
func (t *Thread) traceEnv(c Context) []string {
	if t.P.Native() == config.NativeOff {
		return nil
	}
	if c.TraceID == "" {
		c = c.Child()
	}
	return []string{fmt.Sprintf("BAGGAGE=span.depth=%d", c.Depth), "TRACEPARENT=" + c.String()}
}

// NewSpanIf is NewSpan below a parent that exists; without one there is no span.
func (t *Thread) NewSpanIf(parent Context) Context {
	if parent.TraceID == "" {
		t.Trace = ""
		return Context{}
	}
	return t.NewSpan(parent)
}
