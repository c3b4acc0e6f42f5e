package check

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/bpf"
)

// State is what was found out about one thing.
type State string

// States.
const (
	Works   State = "works"
	Wider   State = "wider"   // works by a wider way: it costs more or tells less
	Absent  State = "absent"  // is not there, and nothing stops for that
	Fails   State = "fails"   // does not work
	Unknown State = "unknown" // could not be looked at
)

// Item is one thing that was looked at.
type Item struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	OK     bool   `json:"ok"`     // works, by whatever way
	Needed bool   `json:"needed"` // without it the agent cannot trace
	Detail string `json:"detail,omitempty"`
	Why    string `json:"why,omitempty"`    // why not, or why not by a narrower way
	Advice string `json:"advice,omitempty"` // what to do
}

// works, wider, absent, fails and unknown make Items.
func works(name, detail string) Item { return Item{Name: name, State: Works, OK: true, Detail: detail} }

func wider(name, detail, why, advice string) Item {
	return Item{Name: name, State: Wider, OK: true, Detail: detail, Why: why, Advice: advice}
}

func absent(name, why, advice string) Item {
	return Item{Name: name, State: Absent, Why: why, Advice: advice}
}

func fails(name, why, advice string) Item {
	return Item{Name: name, State: Fails, Why: why, Advice: advice}
}

func unknown(name, why, advice string) Item {
	return Item{Name: name, State: Unknown, Why: why, Advice: advice}
}

// needed is i as something without which the agent cannot trace.
func (i Item) needed() Item {
	i.Needed = true
	return i
}

// stops tells whether the agent cannot trace because of i.
func (i Item) stops() bool { return i.Needed && !i.OK }

// word says the state in a column of its own.
func (i Item) word() string {
	switch {
	case i.stops():
		return "MISSING"
	case i.State == Works:
		return "ok"
	case i.State == Fails:
		return "FAILS"
	}
	return string(i.State)
}

// print writes i for people, below indent.
func (i Item) print(w io.Writer) {
	fmt.Fprintf(w, "  %-7s  %s", i.word(), i.Name)
	if i.Detail != "" {
		fmt.Fprintf(w, ": %s", i.Detail)
	}
	fmt.Fprintln(w)
	for _, l := range []struct{ word, text string }{{"why", i.Why}, {"do", i.Advice}} {
		for n, line := range strings.Split(l.text, "\n") {
			switch {
			case line == "":
			case n == 0:
				fmt.Fprintf(w, "             %-4s %s\n", l.word+":", line)
			default:
				fmt.Fprintf(w, "                  %s\n", line)
			}
		}
	}
}

// Refusal is the error with which the agent does not start because of what is
// missing, in the words of `dtagent check`; nil if nothing is. It wraps
// bpf.ErrKernel.
func Refusal(items []Item) error {
	missing := slices.DeleteFunc(slices.Clone(items), func(i Item) bool { return !i.stops() })
	if len(missing) == 0 {
		return nil
	}
	var b strings.Builder
	for _, i := range missing {
		i.print(&b)
	}
	return fmt.Errorf("%w:\n%s%w", bpf.ErrKernel, b.String(), errSayMore)
}

var errSayMore = errors.New("`dtagent check` says all that this kernel and host allow")
