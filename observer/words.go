package observer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Params are the parameters of an Observer as xe names them.
var paramNames = []string{"uuid", "name-label", "name-description", "host-uuids", "attributes", "endpoints", "components", "enabled"}

// ParamNames returns the parameters of an Observer, as xe names them, in the
// order in which they are listed.
func ParamNames() []string { return slices.Clone(paramNames) }

// FromWords returns the Observer that the arguments of xe observer-create
// describe: name-label=… (needed), name-description=, host-uuids=u1,u2,
// attributes=k:v,k2:v2, attributes:k=v, endpoints= (default bugtool),
// components=, enabled= (default false). It is not validated yet.
func FromWords(words ...string) (Observer, error) {
	o := Observer{Endpoints: []string{Bugtool}}
	if err := o.SetWords(words...); err != nil {
		return Observer{}, err
	}
	if o.NameLabel == "" {
		return Observer{}, fmt.Errorf("name-label is missing; write name-label=NAME")
	}
	return o, nil
}

// SetWords changes o as the arguments of xe observer-param-set ask for.
// Attributes are split at commas, each at its first colon; unlike xe, which
// silently leaves out an item with a second colon, the value keeps it. A value
// with a comma can be given as attributes:k=v. An empty value empties a list or
// the map.
func (o *Observer) SetWords(words ...string) error {
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			return fmt.Errorf("%q: write PARAMETER=VALUE", w)
		}
		if key, ok := strings.CutPrefix(name, "attributes:"); ok {
			o.setAttribute(key, value)
			continue
		}
		switch name {
		case "name-label":
			o.NameLabel = value
		case "name-description":
			o.NameDescription = value
		case "attributes":
			o.Attributes = nil
			if err := o.addAttributes(splitList(value), ":"); err != nil {
				return err
			}
		case "host-uuids", "endpoints", "components":
			list, err := o.list(name)
			if err != nil {
				return err
			}
			*list = splitList(value)
		case "enabled":
			switch strings.ToLower(value) {
			case "true", "t", "1", "yes", "y":
				o.Enabled = true
			case "false", "f", "0", "no", "n":
				o.Enabled = false
			default:
				return fmt.Errorf("enabled: %q must be true or false", value)
			}
		case "uuid":
			return fmt.Errorf("uuid cannot be set")
		default:
			return fmt.Errorf("no parameter %q; there are %s", name, strings.Join(paramNames, ", "))
		}
	}
	return nil
}

func (o *Observer) setAttribute(k, v string) {
	if o.Attributes == nil {
		o.Attributes = map[string]string{}
	}
	o.Attributes[k] = v
}

// addAttributes takes items of key, one of seps, value.
func (o *Observer) addAttributes(items []string, seps string) error {
	for _, item := range items {
		i := strings.IndexAny(item, seps)
		if i < 0 {
			return fmt.Errorf("attributes: %q has no value; write KEY%cVALUE", item, seps[0])
		}
		o.setAttribute(item[:i], item[i+1:])
	}
	return nil
}

func (o *Observer) list(param string) (*[]string, error) {
	switch param {
	case "host-uuids", "hosts":
		return &o.Hosts, nil
	case "endpoints":
		return &o.Endpoints, nil
	case "components":
		return &o.Components, nil
	}
	return nil, fmt.Errorf("%q is not a list or map; host-uuids, attributes, endpoints and components are", param)
}

func splitList(s string) []string {
	out := []string{}
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// Param returns one parameter as xe prints it: the items of a list joined by
// "; ", those of a map as "k: v". With a key it returns the value of that key of
// attributes.
func (o Observer) Param(name, key string) (string, error) {
	if key != "" {
		if name != "attributes" {
			return "", fmt.Errorf("%s is not a map and has no keys; leave the key out", name)
		}
		v, ok := o.Attributes[key]
		if !ok {
			return "", fmt.Errorf("attributes has no key %q", key)
		}
		return v, nil
	}
	switch name {
	case "uuid":
		return o.UUID, nil
	case "name-label":
		return o.NameLabel, nil
	case "name-description":
		return o.NameDescription, nil
	case "host-uuids":
		return strings.Join(o.Hosts, "; "), nil
	case "attributes":
		items := make([]string, 0, len(o.Attributes))
		for _, k := range slices.Sorted(maps.Keys(o.Attributes)) {
			items = append(items, k+": "+o.Attributes[k])
		}
		return strings.Join(items, "; "), nil
	case "endpoints":
		return strings.Join(o.Endpoints, "; "), nil
	case "components":
		return strings.Join(o.Components, "; "), nil
	case "enabled":
		return fmt.Sprint(o.Enabled), nil
	}
	return "", fmt.Errorf("no parameter %q; there are %s", name, strings.Join(paramNames, ", "))
}
