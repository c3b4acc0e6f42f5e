package observer

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/xenserver/dtagent/observer/masked"
	"github.com/xenserver/dtagent/probes/event"
)

// XAPI's limits (xapi_observer.ml and tracing.ml of xen-api).
const (
	maxAttributeValue = 4095 // bytes
	maxDomainName     = 253
)

var attributeKey = regexp.MustCompile(`^[a-z0-9][a-z0-9._]{0,253}[a-z0-9]$`)

// Mistake is one thing that is wrong with an Observer.
type Mistake struct {
	File   string   // "" when it did not come from a file
	Key    string   // field, as its JSON name; "" for the whole
	Params []string // of XAPI's INVALID_VALUE; nil when XAPI has no such error
	Rule   string   // what must hold
	Advice string   // what to do
}

// Error puts it all in one line: file, key, XAPI's error, rule, and what to do.
func (m *Mistake) Error() string {
	var b strings.Builder
	if m.File != "" {
		b.WriteString(m.File + ": ")
	}
	if m.Key != "" {
		b.WriteString(m.Key + ": ")
	}
	if m.Params != nil {
		b.WriteString("INVALID_VALUE")
		for i, p := range m.Params {
			if i == 0 {
				b.WriteString(" " + p)
			} else {
				fmt.Fprintf(&b, " %q", shorten(p))
			}
		}
		b.WriteString(": ")
	}
	b.WriteString(m.Rule)
	if m.Advice != "" {
		b.WriteString("; " + m.Advice)
	}
	return b.String()
}

func shorten(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// Mistakes are all that is wrong with one Observer, one a line.
type Mistakes []*Mistake

func (ms Mistakes) Error() string {
	lines := make([]string, len(ms))
	for i, m := range ms {
		lines[i] = m.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the single mistakes for errors.As.
func (ms Mistakes) Unwrap() []error {
	errs := make([]error, len(ms))
	for i, m := range ms {
		errs[i] = m
	}
	return errs
}

func (ms Mistakes) err() error {
	if len(ms) == 0 {
		return nil
	}
	return ms
}

// Validate checks o by XAPI's rules and returns all Mistakes, or nil. Names are
// not checked, nor are path and port of an endpoint: XAPI does not either. Where
// XAPI asks for the reference of a live host, a host uuid or a reference is
// asked for. Endpoints may be OTLP receivers, too, which XAPI would refuse.
func (o Observer) Validate() error { return o.mistakes().err() }

func (o Observer) mistakes() (ms Mistakes) {
	if o.UUID != "" {
		if _, err := uuid.Parse(o.UUID); err != nil || len(o.UUID) != 36 {
			ms = append(ms, &Mistake{Key: "uuid", Params: []string{"uuid", o.UUID},
				Rule: "must be a uuid such as 3f6c4b2a-9c1d-4e5f-8a7b-001122334455", Advice: "write one, or leave the key out"})
		}
	}
	for _, h := range o.Hosts {
		if _, err := uuid.Parse(h); (err != nil || len(h) != 36) && !strings.HasPrefix(h, "OpaqueRef:") {
			ms = append(ms, &Mistake{Key: "hosts", Params: []string{"host", h},
				Rule: "must be the uuid of a host", Advice: "see INSTALLATION_UUID in its /etc/xensource-inventory, or leave the list empty for all hosts"})
		}
	}
	keys := make([]string, 0, len(o.Attributes))
	for k := range o.Attributes {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := o.Attributes[k]
		params := []string{"attributes", k + ":" + masked.Endpoint(v)}
		if !attributeKey.MatchString(k) {
			ms = append(ms, &Mistake{Key: "attributes", Params: params,
				Rule:   fmt.Sprintf("key %q must be 2 to 255 of a-z, 0-9, '.' and '_', with a letter or digit first and last", shorten(k)),
				Advice: "rename it"})
		}
		if len(v) > maxAttributeValue {
			ms = append(ms, &Mistake{Key: "attributes", Params: params,
				Rule:   fmt.Sprintf("the value of %q is %d bytes, at most %d are allowed", shorten(k), len(v), maxAttributeValue),
				Advice: "shorten it"})
		}
	}
	for _, e := range o.Endpoints {
		if rule, advice := checkEndpoint(e); rule != "" {
			ms = append(ms, &Mistake{Key: "endpoints", Params: []string{"endpoint", masked.Endpoint(e)}, Rule: rule, Advice: advice})
		}
	}
	for _, c := range o.Components {
		if _, err := event.ParseComponent(c); err != nil {
			ms = append(ms, &Mistake{Key: "components", Params: []string{"component", c},
				Rule: err.Error(), Advice: "name one of them, or leave the list empty for all"})
		}
	}
	return ms
}

// checkEndpoint returns the rule that e breaks, or "".
func checkEndpoint(e string) (rule, advice string) {
	if e == Bugtool {
		return "", ""
	}
	const form = "write bugtool or a URL such as http://10.0.0.9:9411/api/v2/spans or otlp+http://10.0.0.9:4318"
	scheme, rest, ok := strings.Cut(e, "://")
	if !ok {
		return "must be bugtool or an http, https, otlp+http or otlp+https URL", form
	}
	switch low := strings.ToLower(scheme); low {
	case "http", "https", "otlp+http", "otlp+https":
		if scheme != low {
			return fmt.Sprintf("the scheme %q must be in lower case", scheme), form
		}
	default:
		return fmt.Sprintf("the scheme %q is not supported, only http, https, otlp+http and otlp+https", shorten(masked.Endpoint(scheme))), form
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return "is not a URL", form
	}
	if host := u.Hostname(); !isHost(host) {
		return fmt.Sprintf("the host %q is neither an IP address nor a domain name", shorten(host)), form
	}
	return "", ""
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxDomainName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
