//go:build linux

package xapi

import (
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

func (d *database) hostByRef(ref string) (config.Host, bool) {
	for _, h := range d.hosts {
		if h.Ref == ref {
			return h, true
		}
	}
	return config.Host{}, false
}

// hostUUIDs are the uuids of hosts, as far as there are such hosts.
func (d *database) hostUUIDs(refs []string) []string {
	out := []string{}
	for _, r := range refs {
		if h, ok := d.hostByRef(r); ok {
			out = append(out, h.UUID)
		}
	}
	return out
}

func (d *database) validHosts(refs []string) *failure {
	for _, r := range refs {
		if _, ok := d.hostByRef(r); !ok {
			return fail("INVALID_VALUE", "host", r)
		}
	}
	return nil
}

// hostRecord is a host's record: a part of the real one's fields, in its order.
func (d *database) hostRecord(h config.Host) dict {
	return dict{
		{"uuid", h.UUID}, {"name_label", h.Name}, {"name_description", "Default install"}, {"memory_overhead", "0"}, {"allowed_operations", []any{"vm_migrate", "provision", "vm_start"}},
		{"current_operations", dict{}}, {"API_version_major", "2"}, {"API_version_minor", "21"}, {"enabled", true},
		{"software_version", dict{{"product_brand", "XenServer"}, {"xapi_build", "26.17.0"}}}, {"other_config", dict{{"agent_start_time", "1795350139."}}},
		{"capabilities", []any{"xen-3.0-x86_64"}}, {"hostname", h.Name}, {"address", h.Address}, {"tags", []any{}},
	}
}

// poolRecord is the pool's record: a part of the real one's fields, in its order.
func (d *database) poolRecord() dict {
	return dict{
		{"uuid", d.pool}, {"name_label", config.PoolName}, {"name_description", ""}, {"master", d.hosts[0].Ref}, {"default_SR", "OpaqueRef:NULL"},
		{"other_config", dict{}}, {"ha_enabled", false}, {"tags", []any{}},
	}
}

// hostArity is arity for the methods of classes host and pool.
var hostArity = map[string]int{
	"host.get_all": 1, "host.get_all_records": 1, "host.get_by_uuid": 2, "host.get_by_name_label": 2, "host.get_record": 2, "host.get_uuid": 2,
	"host.get_name_label": 2, "host.get_software_version": 2, "host.get_address": 2, "host.get_enabled": 2,
	"pool.get_all": 1, "pool.get_all_records": 1, "pool.get_by_uuid": 2, "pool.get_record": 2, "pool.get_uuid": 2, "pool.get_name_label": 2, "pool.get_master": 2,
}

// getHost answers methods of class host.
func (d *database) getHost(field, arg string) (any, *failure) {
	out := []any{}
	for _, h := range d.hosts {
		switch {
		case field == "by_uuid" && h.UUID == arg:
			return h.Ref, nil
		case field == "all", field == "by_name_label" && h.Name == arg:
			out = append(out, h.Ref)
		}
	}
	switch field {
	case "all", "by_name_label":
		return out, nil
	case "by_uuid":
		return nil, fail("UUID_INVALID", "host", arg)
	case "all_records":
		all := dict{}
		for _, h := range d.hosts {
			all = append(all, member{h.Ref, d.hostRecord(h)})
		}
		return all, nil
	}
	h, ok := d.hostByRef(arg)
	if !ok {
		return nil, fail("HANDLE_INVALID", "host", arg)
	}
	if field == "record" {
		return d.hostRecord(h), nil
	}
	return d.hostRecord(h).get(field), nil
}

// getPool answers methods of class pool.
func (d *database) getPool(field, arg string) (any, *failure) {
	switch field {
	case "all":
		return []any{d.poolRef}, nil
	case "all_records":
		return dict{{d.poolRef, d.poolRecord()}}, nil
	case "by_uuid":
		if arg != d.pool {
			return nil, fail("UUID_INVALID", "pool", arg)
		}
		return d.poolRef, nil
	}
	if arg != d.poolRef {
		return nil, fail("HANDLE_INVALID", "pool", arg)
	}
	if field == "record" {
		return d.poolRecord(), nil
	}
	return d.poolRecord().get(field), nil
}

// hostLogin opens a session for another host, which knows the pool's secret. A dom0
// that is in no pool has none to check.
func (c *conn) hostLogin(s *node.Span, host, secret string) (any, *failure) {
	t := c.t
	t.Tag = "session.slave_login " + newRef("D")
	s.Tag = node.LastWord(t.Tag)
	t.NewSpan(c.in)
	if p := c.x.pool; p.Pool != nil && secret != p.Secret {
		return nil, fail("SESSION_AUTHENTICATION_FAILED", host)
	}
	return c.x.hostSession(t), nil
}
