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
	Edit          *export.Edit  // of the tags; nil: none
	BatchInterval time.Duration // of remote endpoints; 0: the default
	BatchSpans    int           // of remote endpoints; 0: the default
	CAFile        string        // PEM file that https receivers are checked against; "": the agent's
	Metrics       bool          // make metrics from the spans
	Logs          bool          // make log records from the spans
}

// Steering returns what the attributes dtagent.* say, and warnings, each about
// one that is wrong or unknown and therefore has no effect.
func (o Observer) Steering() (Steering, []string) {
	return Steering{}, o.unknownSteering()
}

// Warnings returns what is allowed but probably not meant: steering attributes
// that this version does not know and that therefore do nothing, and an
// Observer that exports nowhere.
func (o Observer) Warnings() []string {
	_, out := o.Steering()
	if len(o.Endpoints) > maxEndpoints {
		out = append(out, fmt.Sprintf("endpoints: %d, of which the first %d are used", len(o.Endpoints), maxEndpoints))
	}
	if len(o.Endpoints) == 0 {
		out = append(out, `endpoints: none, so its spans go nowhere; add "bugtool" or an http URL`)
	}
	return out
}

func (o Observer) unknownSteering() (out []string) {
	for k := range o.Attributes {
		if strings.HasPrefix(k, steeringPrefix) {
			out = append(out, fmt.Sprintf("attribute %q: this dtagent has no such setting; it has no effect", k))
		}
	}
	slices.Sort(out)
	return out
}
