package client

import (
	"context"
	"fmt"
)

// Observer is a record of class Observer.
type Observer struct {
	UUID        string
	Name        string
	Description string
	Hosts       []string // references; none: all hosts
	Attributes  map[string]string
	Endpoints   []string
	Components  []string
	Enabled     bool
}

// Observers is a session in which Observers are changed. It uses the client it
// comes from, so it is for one goroutine at a time; a client that keeps its
// connection alive makes some thousand changes a second.
type Observers struct {
	c       *Client
	session string
}

// Observers logs in.
func (c *Client) Observers(ctx context.Context) (*Observers, error) {
	session, err := c.Login(ctx)
	if err != nil {
		return nil, err
	}
	return &Observers{c: c, session: session}, nil
}

// Session is the session's reference.
func (s *Observers) Session() string { return s.session }

// Create makes an Observer and returns its reference. The UUID is the server's to
// choose.
func (s *Observers) Create(ctx context.Context, o Observer) (string, error) {
	v, err := s.c.Call(ctx, "Observer.create", s.session, map[string]any{
		"name_label": o.Name, "name_description": o.Description, "hosts": list(o.Hosts), "attributes": dict(o.Attributes),
		"endpoints": list(o.Endpoints), "components": list(o.Components), "enabled": o.Enabled,
	})
	if err != nil {
		return "", err
	}
	ref, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("reference of Observer.create is %T", v)
	}
	return ref, nil
}

// Destroy removes an Observer.
func (s *Observers) Destroy(ctx context.Context, ref string) error {
	_, err := s.c.Call(ctx, "Observer.destroy", s.session, ref)
	return err
}

func (s *Observers) set(ctx context.Context, field, ref string, value any) error {
	_, err := s.c.Call(ctx, "Observer.set_"+field, s.session, ref, value)
	return err
}

// SetEnabled switches an Observer on or off.
func (s *Observers) SetEnabled(ctx context.Context, ref string, on bool) error {
	return s.set(ctx, "enabled", ref, on)
}

// SetAttributes replaces all attributes.
func (s *Observers) SetAttributes(ctx context.Context, ref string, attributes map[string]string) error {
	return s.set(ctx, "attributes", ref, dict(attributes))
}

// SetEndpoints replaces all endpoints.
func (s *Observers) SetEndpoints(ctx context.Context, ref string, endpoints ...string) error {
	return s.set(ctx, "endpoints", ref, list(endpoints))
}

// SetComponents replaces all components; none: all of them.
func (s *Observers) SetComponents(ctx context.Context, ref string, components ...string) error {
	return s.set(ctx, "components", ref, list(components))
}

// SetHosts replaces the hosts, by their references; none: all of them.
func (s *Observers) SetHosts(ctx context.Context, ref string, hosts ...string) error {
	return s.set(ctx, "hosts", ref, list(hosts))
}

// SetName changes the name label.
func (s *Observers) SetName(ctx context.Context, ref, name string) error {
	return s.set(ctx, "name_label", ref, name)
}

// All gives the Observers by their references.
func (s *Observers) All(ctx context.Context) (map[string]Observer, error) {
	v, err := s.c.Call(ctx, "Observer.get_all_records", s.session)
	if err != nil {
		return nil, err
	}
	records, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("answer to Observer.get_all_records is %T", v)
	}
	out := make(map[string]Observer, len(records))
	for ref, r := range records {
		fields, ok := r.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("record of Observer.get_all_records is %T", r)
		}
		out[ref] = observer(fields)
	}
	return out, nil
}

// Close logs out and gives up the connection.
func (s *Observers) Close(ctx context.Context) error {
	_, err := s.c.Call(ctx, "session.logout", s.session)
	s.c.Close()
	return err
}

// observer takes a record for what it says; what is of another type is left zero.
func observer(r map[string]any) Observer {
	text := func(name string) string {
		s, _ := r[name].(string)
		return s
	}
	texts := func(name string) []string {
		out := []string{}
		all, _ := r[name].([]any)
		for _, v := range all {
			s, _ := v.(string)
			out = append(out, s)
		}
		return out
	}
	o := Observer{
		UUID: text("uuid"), Name: text("name_label"), Description: text("name_description"), Hosts: texts("hosts"), Attributes: map[string]string{},
		Endpoints: texts("endpoints"), Components: texts("components"),
	}
	o.Enabled, _ = r["enabled"].(bool)
	attributes, _ := r["attributes"].(map[string]any)
	for k, v := range attributes {
		o.Attributes[k], _ = v.(string)
	}
	return o
}

func list(all []string) []any {
	out := make([]any, len(all))
	for i, s := range all {
		out[i] = s
	}
	return out
}

func dict(all map[string]string) map[string]any {
	out := make(map[string]any, len(all))
	for k, v := range all {
		out[k] = v
	}
	return out
}
