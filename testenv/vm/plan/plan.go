// Package plan is what the host tells the guest to do, and how the guest tells
// what came of it.
package plan

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Path is where the guest finds its Plan, as JSON.
const Path = "/plan.json"

// Plan is what the guest does between its boot and its end.
type Plan struct {
	Modules []string // files of kernel modules, in the order of loading
	Runs    []Run
}

// Run is one program that the guest runs to its end.
type Run struct {
	Name string
	Dir  string
	Argv []string // the first is the program's path
}

// Mark is a line by which the guest tells how far it is. What a run prints
// stands between its Begin and its End.
type Mark struct {
	Release string  `json:",omitempty"` // of the kernel, once at the start
	Begin   string  `json:",omitempty"` // name of a run
	End     string  `json:",omitempty"` // name of a run
	Exit    int     `json:",omitempty"` // status of the run; -1: a signal ended it
	Seconds float64 `json:",omitempty"` // of the run, or of the boot beside Release
	Error   string  `json:",omitempty"` // why the guest gave up
	Done    bool    `json:",omitempty"` // all runs have ended
}

const prefix = "@@vm "

// String returns the Mark as a line without its end.
func (m Mark) String() string {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Sprintf(`%s{"Error":%q}`, prefix, err)
	}
	return prefix + string(b)
}

// ParseMark returns the Mark in a line, if it is one.
func ParseMark(line string) (m Mark, ok bool) {
	rest, ok := strings.CutPrefix(line, prefix)
	return m, ok && json.Unmarshal([]byte(rest), &m) == nil
}
