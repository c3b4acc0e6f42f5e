package xapi

import (
	"errors"
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/observer"
)

// maxMistakes bounds what is told of one Observer.
const maxMistakes = 16

// sound returns o without what XAPI should not have stored, and what that was. A
// later XAPI may know components or schemes that this dtagent does not: the rest
// of the Observer works all the same. It returns false when nothing sensible is
// left: an empty list would mean all hosts or all components.
func sound(o observer.Observer) (observer.Observer, []string, bool) {
	err := o.Validate()
	if err == nil {
		return o, nil, true
	}
	wrong := errorLines(err)
	if (observer.Observer{UUID: o.UUID}).Validate() != nil {
		return o, wrong, false
	}
	out := o.Clone()
	out.Attributes = map[string]string{}
	for k, v := range o.Attributes {
		if (observer.Observer{Attributes: map[string]string{k: v}}).Validate() == nil {
			out.Attributes[k] = v
		}
	}
	out.Endpoints = keep(o.Endpoints, func(s string) observer.Observer { return observer.Observer{Endpoints: []string{s}} })
	out.Hosts = keep(o.Hosts, func(s string) observer.Observer { return observer.Observer{Hosts: []string{s}} })
	out.Components = keep(o.Components, func(s string) observer.Observer { return observer.Observer{Components: []string{s}} })
	widened := len(out.Hosts) == 0 && len(o.Hosts) > 0 || len(out.Components) == 0 && len(o.Components) > 0
	return out, wrong, !widened && out.Validate() == nil
}

func keep(items []string, as func(string) observer.Observer) []string {
	out := []string{}
	for _, item := range items {
		if as(item).Validate() == nil {
			out = append(out, item)
		}
	}
	return out
}

func errorLines(err error) []string {
	var ms observer.Mistakes
	if !errors.As(err, &ms) {
		return []string{strings.ToValidUTF8(err.Error(), "\uFFFD")}
	}
	var out []string
	for _, m := range ms {
		if len(out) == maxMistakes {
			return append(out, fmt.Sprintf("and %d more", len(ms)-maxMistakes))
		}
		out = append(out, strings.ToValidUTF8(m.Error(), "\uFFFD"))
	}
	return out
}
