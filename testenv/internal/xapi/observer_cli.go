//go:build linux

package xapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/node"
)

// observerCommand is one of xe's commands for Observers.
func (c *conn) observerCommand(cmd string, args map[string]string, own node.Context) (string, *failure) {
	x := c.x
	do := func(method string, params ...any) (any, *failure) {
		ref := newRef("R")
		row := x.db.addTask(full(ref), method)
		defer x.db.removeTask(row.ref)
		return x.task(c.t, method, method, append([]any{""}, params...), own, row.ref, ref)
	}
	switch cmd {
	case "observer-list":
		c.t.Log(node.Debug, "api_readonly", "Observer.get_all_records_where")
		var b strings.Builder
		for _, o := range x.db.observers.all() {
			fmt.Fprintf(&b, "uuid ( RO)                : %s\n          name-label ( RO): %s\n    name-description ( RO): %s\n             enabled ( RW): %v\n\n\n", o.UUID, o.Name, o.Description, o.Enabled)
		}
		return b.String(), nil
	case "observer-create":
		return c.createByCommand(args, do)
	}
	o := observer{}
	for _, one := range x.db.observers.all() {
		if one.UUID == args["uuid"] {
			o = one
		}
	}
	if o.Ref == "" {
		return "", fail("UUID_INVALID", "Observer", args["uuid"])
	}
	if cmd == "observer-destroy" {
		_, f := do("Observer.destroy", o.Ref)
		return "", f
	}
	for _, name := range slices.Sorted(maps.Keys(args)) {
		var f *failure
		value := args[name]
		switch field, key, _ := strings.Cut(name, ":"); field {
		case "enabled":
			_, f = do("Observer.set_enabled", o.Ref, value == "true")
		case "endpoints", "components":
			_, f = do("Observer.set_"+field, o.Ref, anys(split(value)))
		case "host-uuids":
			_, f = do("Observer.set_hosts", o.Ref, x.db.hostRefs(split(value)))
		case "attributes":
			attributes := map[string]any{}
			for k, v := range o.Attributes {
				attributes[k] = v
			}
			if key != "" {
				attributes[key] = value
			} else {
				attributes = pairs(value)
			}
			_, f = do("Observer.set_attributes", o.Ref, attributes)
		}
		if f != nil {
			return "", f
		}
	}
	return "", nil
}

func (c *conn) createByCommand(args map[string]string, do func(string, ...any) (any, *failure)) (string, *failure) {
	endpoints := []string{"bugtool"}
	if e, ok := args["endpoints"]; ok {
		endpoints = split(e)
	}
	ref, f := do("Observer.create", map[string]any{
		"name_label": args["name-label"], "name_description": args["name-description"], "enabled": args["enabled"] == "true", "attributes": pairs(args["attributes"]),
		"hosts": c.x.db.hostRefs(split(args["host-uuids"])), "endpoints": anys(endpoints), "components": anys(split(args["components"])),
	})
	if f != nil {
		return "", f
	}
	o, _ := c.x.db.observers.get(ref.(string))
	return o.UUID + "\n", nil
}

// split is a list with commas.
func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// pairs is k:v,k2:v2; what has a second colon is left out, as xe has it.
func pairs(s string) map[string]any {
	out := map[string]any{}
	for _, p := range split(s) {
		if k, v, ok := strings.Cut(p, ":"); ok && !strings.Contains(v, ":") {
			out[k] = v
		}
	}
	return out
}

// hostRefs are the references of hosts, as far as there are such hosts.
func (d *database) hostRefs(uuids []string) []any {
	out := []any{}
	for _, h := range d.hosts {
		if slices.Contains(uuids, h.UUID) {
			out = append(out, h.Ref)
		}
	}
	return out
}
