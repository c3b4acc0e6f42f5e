package xapi

import (
	"context"
	"errors"
)

// Sight is what XAPI says when it is asked once.
type Sight struct {
	State       State
	Mistakes    []Mistake
	Unsupported bool              // this XAPI has no class Observer
	Skipped     int               // Observers beyond the bound
	Software    map[string]string // software_version of this host: "xapi_build", "product_version" and others; nil: not told
}

// Look asks once what a Source follows, as a Source does: over the same socket, with
// the same login and the same calls. Then it logs out. Of the Options it uses the
// socket, the host, the version and CallTimeout. The error wraps that of connecting
// when nobody listens, and never holds the session.
func Look(ctx context.Context, o Options) (*Sight, error) {
	o.StateFile, o.Log = "", nil
	s := New(o)
	c := newClient(s.o.Socket, s.o.Version)
	defer c.close()
	sn := &session{c: c, timeout: s.o.CallTimeout}
	defer sn.logout(ctx)
	m := newMirror(s.o.HostUUID)
	if err := sn.login(ctx); err != nil {
		if nobodyListens(err) {
			return nil, err
		}
		return nil, errors.New(redact(err.Error(), sn.ref))
	}
	if err := s.readAll(ctx, sn, m); err != nil {
		return nil, errors.New(redact(err.Error(), sn.ref))
	}
	out := &Sight{Unsupported: s.Status().Unsupported, Skipped: m.skipped}
	out.State, out.Mistakes = m.state()
	if m.hostRef != "" {
		if raw, err := sn.call(ctx, sn.timeout, "host.get_software_version", m.hostRef); err == nil {
			out.Software, _ = decodeMap(raw)
		}
	}
	return out, nil
}
