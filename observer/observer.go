// Package observer holds XAPI's Observer objects: what they are, where local
// ones come from, and the Set that gives each of them its own spans, with its
// own attributes, at its own endpoints.
package observer

import (
	"maps"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/attribute"
)

// Record and Exporter are the seam to the exporters.
type (
	Record   = export.Record
	Exporter = export.Exporter
)

// Observer is one Observer object with the field names of XAPI's API.
type Observer struct {
	UUID            string            `json:"uuid"`
	NameLabel       string            `json:"name_label"` // becomes xs.observer.name
	NameDescription string            `json:"name_description"`
	Hosts           []string          `json:"hosts"`      // host uuids; none means all
	Attributes      map[string]string `json:"attributes"` // on every span; keys in dtagent.* steer dtagent
	Endpoints       []string          `json:"endpoints"`  // bugtool and URLs; none means nowhere
	Components      []string          `json:"components"` // none means all
	Enabled         bool              `json:"enabled"`
}

// Clone returns a copy that shares nothing with o.
func (o Observer) Clone() Observer {
	o.Hosts = slices.Clone(o.Hosts)
	o.Attributes = maps.Clone(o.Attributes)
	o.Endpoints = slices.Clone(o.Endpoints)
	o.Components = slices.Clone(o.Components)
	return o
}

// Wants returns the components that the Observer asks for, whether or not it is
// enabled: those of its list and those of its attribute dtagent.components, or, if
// neither names any, all that are not costly. Names that do not exist are left
// out.
func (o Observer) Wants() event.Components {
	st, _ := o.Steering()
	s := st.Components
	if len(o.Components) == 0 && s == 0 {
		return event.DefaultComponents()
	}
	for _, name := range o.Components {
		if c, err := event.ParseComponent(name); err == nil {
			s |= event.Of(c)
		}
	}
	return s
}

// On tells whether the Observer is in force on the host of that uuid.
func (o Observer) On(host string) bool { return o.Enabled && o.observes(host) }

func (o Observer) observes(host string) bool {
	return len(o.Hosts) == 0 || slices.ContainsFunc(o.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// Tags returns the Observer's part of the tags of its spans on host h: XAPI's
// defaults, the name of the scope that tells dtagent's spans from the
// toolstack's own, then the user's attributes, which may override any of them.
// service.name is not among them unless the user gives it: it differs from span
// to span.
func (o Observer) Tags(h Host) []attribute.KeyValue {
	out := []attribute.KeyValue{
		attribute.String("xs.pool.uuid", h.PoolUUID),
		attribute.String("xs.host.name", h.Name),
		attribute.String("xs.host.uuid", h.UUID),
		attribute.String("xs.observer.name", o.NameLabel),
		attribute.String("xs.observer.uuid", o.UUID),
		export.KeyScopeName.String("dtagent"),
	}
	for k, v := range o.Attributes {
		if !strings.HasPrefix(k, steeringPrefix) {
			out = append(out, attribute.String(k, v))
		}
	}
	return slices.Clip(export.SortTags(out))
}
