// Package xe edits the Observers of a local directory in the words of the
// toolstack's own command: xe observer-create name-label=… and its like.
package xe

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/observer"
)

// Arg is one argument of the form name=value, or name:key=value for an item
// of a map.
type Arg struct {
	Name, Key, Value string
}

// ParseArgs splits arguments into name and value. Of a name that is given
// twice the last one would win in xe; here it is a mistake, except for items of
// a map.
func ParseArgs(args []string) ([]Arg, error) {
	out := make([]Arg, 0, len(args))
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not of the form name=value, as in name-label=%s", a, a)
		}
		arg := Arg{Name: name, Value: value}
		arg.Name, arg.Key, _ = strings.Cut(name, ":")
		for _, o := range out {
			if o.Name == arg.Name && o.Key == arg.Key {
				return nil, fmt.Errorf("%s is given twice", name)
			}
		}
		out = append(out, arg)
	}
	return out, nil
}

// kind says how a parameter's value is written.
type kind uint8

const (
	text kind = iota
	boolean
	set  // a,b
	dict // k:v,k2:v2
)

// param is one parameter of an Observer.
type param struct {
	name     string
	kind     kind
	readOnly bool
	text     func(*observer.Observer) *string
	flag     func(*observer.Observer) *bool
	set      func(*observer.Observer) *[]string
	dict     func(*observer.Observer) *map[string]string
}

// params are those of xe, in the order in which it lists them. xe keeps name
// and description read-only; here they can be set, as through the API.
func params() []param {
	return []param{
		{name: "uuid", readOnly: true, text: func(o *observer.Observer) *string { return &o.UUID }},
		{name: "name-label", text: func(o *observer.Observer) *string { return &o.NameLabel }},
		{name: "name-description", text: func(o *observer.Observer) *string { return &o.NameDescription }},
		{name: "host-uuids", kind: set, set: func(o *observer.Observer) *[]string { return &o.Hosts }},
		{name: "attributes", kind: dict, dict: func(o *observer.Observer) *map[string]string { return &o.Attributes }},
		{name: "endpoints", kind: set, set: func(o *observer.Observer) *[]string { return &o.Endpoints }},
		{name: "components", kind: set, set: func(o *observer.Observer) *[]string { return &o.Components }},
		{name: "enabled", kind: boolean, flag: func(o *observer.Observer) *bool { return &o.Enabled }},
	}
}

// Names are the names of all parameters.
func Names() []string {
	var out []string
	for _, p := range params() {
		out = append(out, p.name)
	}
	return out
}

func find(name string) (param, error) {
	for _, p := range params() {
		if p.name == name {
			return p, nil
		}
	}
	return param{}, fmt.Errorf("no parameter %q; there are %s", name, strings.Join(Names(), ", "))
}

// Set gives parameters of o new values, as param-set does.
func Set(o *observer.Observer, args []Arg) error {
	for _, a := range args {
		p, err := find(a.Name)
		if err != nil {
			return err
		}
		if p.readOnly {
			return fmt.Errorf("%s cannot be changed", p.name)
		}
		if a.Key != "" && p.kind != dict {
			return fmt.Errorf("%s is no map: write %s=…", p.name, p.name)
		}
		switch p.kind {
		case text:
			*p.text(o) = a.Value
		case boolean:
			b, err := parseBool(a.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			*p.flag(o) = b
		case set:
			*p.set(o) = items(a.Value)
		case dict:
			m := p.dict(o)
			if a.Key != "" {
				if *m == nil {
					*m = map[string]string{}
				}
				(*m)[a.Key] = a.Value
				continue
			}
			next := map[string]string{}
			for _, item := range items(a.Value) {
				k, v, ok := strings.Cut(item, ":")
				if !ok {
					return fmt.Errorf("%s: %q is not of the form key:value; a value that holds a comma is set with %s:key=value", p.name, item, p.name)
				}
				next[k] = v
			}
			*m = next
		}
	}
	return nil
}

// Get returns the value of one parameter as xe prints it, or of one key of a
// map.
func Get(o *observer.Observer, name, key string) (string, error) {
	p, err := find(name)
	if err != nil {
		return "", err
	}
	if key != "" {
		if p.kind != dict {
			return "", fmt.Errorf("%s is no map and has no keys", name)
		}
		v, ok := (*p.dict(o))[key]
		if !ok {
			return "", fmt.Errorf("%s has no key %q", name, key)
		}
		return v, nil
	}
	switch p.kind {
	case boolean:
		return strconv.FormatBool(*p.flag(o)), nil
	case set:
		return strings.Join(*p.set(o), "; "), nil
	case dict:
		m := *p.dict(o)
		var out []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out = append(out, k+": "+m[k])
		}
		return strings.Join(out, "; "), nil
	}
	return *p.text(o), nil
}

// Add puts a value into a set or an item into a map.
func Add(o *observer.Observer, name, key, value string) error {
	p, err := find(name)
	if err != nil {
		return err
	}
	switch p.kind {
	case set:
		if s := p.set(o); !slices.Contains(*s, key) {
			*s = append(*s, key)
		}
		return nil
	case dict:
		return Set(o, []Arg{{Name: name, Key: key, Value: value}})
	}
	return fmt.Errorf("%s is neither a set nor a map: use param-set %s=…", name, name)
}

// Remove takes a value out of a set or a key out of a map. It is no error if
// it is not there, as in xe.
func Remove(o *observer.Observer, name, key string) error {
	p, err := find(name)
	if err != nil {
		return err
	}
	switch p.kind {
	case set:
		s := p.set(o)
		*s = slices.DeleteFunc(*s, func(v string) bool { return v == key })
		return nil
	case dict:
		delete(*p.dict(o), key)
		return nil
	}
	return fmt.Errorf("%s is neither a set nor a map: use param-set %s=…", name, name)
}

// Clear empties a set or a map.
func Clear(o *observer.Observer, name string) error {
	p, err := find(name)
	if err != nil {
		return err
	}
	switch p.kind {
	case set:
		*p.set(o) = nil
		return nil
	case dict:
		*p.dict(o) = nil
		return nil
	}
	return fmt.Errorf("%s is neither a set nor a map: use param-set %s=…", name, name)
}

// IsMap tells whether the parameter is a map.
func IsMap(name string) bool {
	p, err := find(name)
	return err == nil && p.kind == dict
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "t", "yes", "1":
		return true, nil
	case "false", "f", "no", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

func items(s string) []string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}
