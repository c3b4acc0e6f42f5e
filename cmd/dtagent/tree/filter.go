package tree

import (
	"path"
	"strings"
	"time"
)

// Filter picks traces. Zero fields pick all; a trace must suit every field
// that is set.
type Filter struct {
	Method      string        // name of some span of it, with or without "Async."; *, ? and [] as in file names
	Task        string        // task id (R:8ae06e1ea3d1), reference (OpaqueRef:8ae06e1e-a3d1-…) or uuid in some attribute
	VM          string        // uuid of a VM in some attribute
	TraceID     string        // its first digits at least
	MinDuration time.Duration // of its longest span
}

// Check returns an error when the filter cannot pick anything.
func (f Filter) Check() error {
	_, err := path.Match(f.Method, "")
	return err
}

// Match tells whether the filter picks the trace.
func (f Filter) Match(t *Trace) bool {
	if !strings.HasPrefix(t.ID, strings.ToLower(f.TraceID)) {
		return false
	}
	tag := shortTask(f.Task)
	method, task, vm := f.Method == "", f.Task == "", f.VM == ""
	var longest time.Duration
	t.All(func(n *Node) {
		method = method || f.matchMethod(n.Name)
		longest = max(longest, n.Length())
		if task && vm {
			return
		}
		for _, v := range n.Tags {
			task = task || strings.Contains(v, f.Task) || tag != "" && strings.Contains(v, tag)
			vm = vm || strings.Contains(v, f.VM)
		}
	})
	return method && task && vm && longest >= f.MinDuration
}

func (f Filter) matchMethod(name string) bool {
	for _, n := range []string{name, strings.TrimPrefix(name, "Async.")} {
		if ok, err := path.Match(f.Method, n); ok && err == nil {
			return true
		}
	}
	return false
}

// shortTask is the id that the toolstack logs for a task reference: R: with
// the first twelve hex digits.
func shortTask(ref string) string {
	digits, ok := strings.CutPrefix(ref, "OpaqueRef:")
	if digits = strings.ReplaceAll(digits, "-", ""); !ok || len(digits) < 12 {
		return ""
	}
	return "R:" + digits[:12]
}
