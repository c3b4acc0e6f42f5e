//go:build linux

package xapi

import (
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// strs is a set of strings.
func strs(v any, name string) ([]string, *failure) {
	all, ok := v.([]any)
	if !ok {
		return nil, fail("FIELD_TYPE_ERROR", name)
	}
	out := make([]string, len(all))
	for i, e := range all {
		if out[i], ok = e.(string); !ok {
			return nil, fail("FIELD_TYPE_ERROR", name)
		}
	}
	return out, nil
}

// strMap is a map of strings.
func strMap(v any, name string) (map[string]string, *failure) {
	all, ok := v.(map[string]any)
	if !ok {
		return nil, fail("FIELD_TYPE_ERROR", name)
	}
	out := make(map[string]string, len(all))
	for k, e := range all {
		if out[k], ok = e.(string); !ok {
			return nil, fail("FIELD_TYPE_ERROR", name)
		}
	}
	return out, nil
}

// components are all names that an Observer can have.
var components = []string{"smapi", "xapi", "xapi-clusterd", "xenopsd"}

func validComponents(all []string) *failure {
	for _, c := range all {
		if !slices.Contains(components, c) {
			return fail("INVALID_VALUE", "component", c)
		}
	}
	return nil
}

// observed are the components that are told of an Observer: clusterd is not
// enabled here, smapi is experimental even when it is named.
func observed(named []string) []string {
	if len(named) == 0 {
		return []string{"xapi", "xenopsd"}
	}
	var out []string
	for _, c := range components {
		if c != "smapi" && slices.Contains(named, c) {
			out = append(out, c)
		}
	}
	return out
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

func (x *xapi) validEndpoints(all []string) *failure {
	for _, e := range all {
		if e != "bugtool" && !x.validURL(e) {
			return fail("INVALID_VALUE", "endpoint", e)
		}
	}
	return nil
}

func (x *xapi) validURL(e string) bool {
	rest, ok := strings.CutPrefix(e, "http://")
	if !ok {
		rest, ok = strings.CutPrefix(e, "https://")
	}
	if !ok || x.p.Setup.Options.Pool.Coordinator() && !x.p.Setup.Options.EndpointHTTP {
		return false
	}
	host := rest
	if i := strings.IndexAny(host, "/?#"); i >= 0 {
		host = host[:i]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, _, ok = strings.Cut(inner, "]")
		_, err := netip.ParseAddr(inner)
		return ok && err == nil
	}
	host, _, _ = strings.Cut(host, ":")
	if len(host) == 0 || len(host) > 253 {
		return false
	}
	for _, label := range strings.Split(strings.TrimSuffix(host, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
	}
	return true
}

// attributeKey is Tracing.attribute_key_regex.
var attributeKey = regexp.MustCompile(`^[a-z0-9][a-z0-9._]{0,253}[a-z0-9]$`)

// maxAttribute is the most bytes that an attribute's value has.
const maxAttribute = 4095

func validAttributes(all map[string]string) *failure {
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if v := all[k]; len(v) > maxAttribute || !attributeKey.MatchString(k) {
			return fail("INVALID_VALUE", "attributes", k+":"+v)
		}
	}
	return nil
}
