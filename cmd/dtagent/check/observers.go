package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/xapi"
)

// Observer is one Observer and what it asks for.
type Observer struct {
	Item
	UUID       string   `json:"uuid"`
	NameLabel  string   `json:"name_label"`
	Source     string   `json:"source"` // "xapi" or "local"
	Enabled    bool     `json:"enabled"`
	Here       bool     `json:"here"` // meant for this host
	Components string   `json:"components"`
	Endpoints  []string `json:"endpoints"` // without passwords
	Warnings   []string `json:"warnings,omitempty"`

	is observer.Observer
}

// inForce tells whether it makes the agent trace.
func (o Observer) inForce() bool { return o.Enabled && o.Here }

// Sources of Observers.
const (
	sourceXAPI  = "xapi"
	sourceLocal = "local"
)

// localSource looks at the files of the local Observers.
func localSource(dir string) (items []Item, found []observer.Observer) {
	for _, f := range observer.LookAt(dir) {
		if f.Err != nil {
			items = append(items, fails(f.Path, strings.TrimPrefix(strings.ReplaceAll(f.Err.Error(), f.Path+": ", ""), f.Path+": "),
				"correct it or remove it; the other Observers work all the same, and an agent that runs keeps what the file said before"))
			continue
		}
		items = append(items, works(f.Path, fmt.Sprintf("Observer %q, uuid %s", f.Observer.NameLabel, f.Observer.UUID)))
		found = append(found, *f.Observer)
	}
	if items == nil {
		items = append(items, works(dir, "no files"))
	}
	return items, found
}

// xapiSource asks XAPI as the agent does. The Sight is nil when it did not answer.
func xapiSource(ctx context.Context, o xapi.Options) ([]Item, *xapi.Sight) {
	const name = "XAPI"
	socket := cmp.Or(o.Socket, xapi.DefaultSocket)
	s, err := xapi.Look(ctx, o)
	switch {
	case errors.Is(err, syscall.ENOENT):
		return []Item{absent(name, "there is no socket "+socket, "nothing on a host without XAPI: local Observers do; else systemctl start xapi, or give the agent --xapi-socket")}, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return []Item{fails(name, "nobody listens on "+socket, "systemctl status xapi; the agent connects when it is back")}, nil
	case errors.Is(err, syscall.EACCES):
		return []Item{unknown(name, "permission denied: "+socket, "run as root")}, nil
	case err != nil:
		return []Item{fails(name, plain(err), "see /var/log/xensource.log; the agent tries on, and keeps to the last known Observers meanwhile")}, nil
	}
	host := s.State.Host
	detail := fmt.Sprintf("logged in on %s, %d Observers, pool %s", socket, len(s.State.Observers), cmp.Or(host.PoolUUID, "not known"))
	if host.Name != "" {
		detail += fmt.Sprintf(", this host is %q", host.Name)
	}
	version := s.Software["xapi_build"]
	if forms := xapiForms(version); forms != "" {
		detail += ", version " + version + ": " + forms
	}
	var items []Item
	switch {
	case s.Unsupported:
		items = append(items, wider(name, detail, "this XAPI has no Observers (23.14)", "use local ones: dtagent observer create"))
	case host.Name == "" && o.HostUUID != "":
		items = append(items, wider(name, detail, "it does not know a host with the uuid "+o.HostUUID, "see INSTALLATION_UUID in "+Inventory+", or --host-uuid"))
	case s.Skipped > 0:
		items = append(items, wider(name, detail, fmt.Sprintf("%d Observers are too many, they are left out", s.Skipped), "xe observer-list; destroy some"))
	default:
		items = append(items, works(name, detail))
	}
	for _, m := range s.Mistakes {
		i := fails("XAPI, Observer "+cmp.Or(m.NameLabel, m.UUID), strings.Join(m.Errors, "\n"), "xe observer-param-set uuid="+m.UUID)
		if m.Kept {
			i.State, i.OK, i.Detail = Wider, true, "it works without what is wrong"
		}
		items = append(items, i)
	}
	return items, s
}

// observers puts those of both sources together as the agent does: one of the pool
// goes before a local one with its uuid.
func observers(pool, local []observer.Observer, hostUUID string) []Observer {
	var out []Observer
	add := func(source string, obs []observer.Observer) {
		for _, o := range obs {
			if slices.ContainsFunc(out, func(x Observer) bool { return strings.EqualFold(x.UUID, o.UUID) }) {
				continue
			}
			out = append(out, observerOf(source, o, hostUUID))
		}
	}
	add(sourceXAPI, pool)
	add(sourceLocal, local)
	return out
}

func observerOf(source string, is observer.Observer, hostUUID string) Observer {
	enabled := is
	enabled.Enabled = true
	o := Observer{UUID: is.UUID, NameLabel: is.NameLabel, Source: source, Enabled: is.Enabled, Here: enabled.On(hostUUID),
		Components: is.Wants().String(), Endpoints: []string{}, Warnings: is.Warnings(), is: is}
	for _, e := range is.Receivers() {
		o.Endpoints = append(o.Endpoints, observer.Show(e))
	}
	name := cmp.Or(is.NameLabel, "(no name)") + " " + is.UUID
	detail := fmt.Sprintf("%s, components %s, endpoints %s", source, cmp.Or(o.Components, "none"), cmp.Or(strings.Join(o.Endpoints, " "), "none"))
	switch {
	case !o.Enabled:
		o.Item = absent(name, "it is disabled", enable(source, is.UUID))
	case !o.Here:
		o.Item = absent(name, "it is for other hosts", "nothing, unless it is meant for this one: then add its uuid to hosts")
	case len(o.Warnings) > 0:
		o.Item = wider(name, "", strings.Join(o.Warnings, "\n"), "docs/observers.md says what can be set")
	default:
		o.Item = works(name, "")
	}
	o.Detail = detail
	return o
}

func enable(source, uuid string) string {
	if source == sourceXAPI {
		return "xe observer-param-set enabled=true uuid=" + uuid
	}
	return "dtagent observer param-set enabled=true uuid=" + uuid
}
