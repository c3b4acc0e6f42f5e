// Package masked shows URLs without what is secret in them, for logs, status and
// people.
package masked

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Hidden takes the place of what is not shown.
const Hidden = "xxxxx"

// URL returns u without its password, without a user that has none and so may be a
// token, and without the values in its query and fragment: any of them may be a token or
// a signature. What values a query has is told by their names.
func URL(u *url.URL) string {
	v := *u
	if v.User != nil {
		if _, ok := v.User.Password(); ok {
			v.User = url.UserPassword(v.User.Username(), Hidden)
		} else if v.User.Username() != "" {
			v.User = url.User(Hidden)
		}
	}
	v.RawQuery = query(v.RawQuery)
	if v.Fragment != "" {
		v.Fragment, v.RawFragment = Hidden, ""
	}
	return v.String()
}

// Endpoint is URL for text that should be a URL, but need not be: then what may be
// secret in it is guessed.
func Endpoint(s string) string {
	u, err := url.Parse(s)
	if err == nil && u.Host != "" {
		if u.User == nil && u.RawQuery == "" && u.Fragment == "" {
			return s
		}
		return URL(u)
	}
	s, q, ok := strings.Cut(s, "?")
	if ok {
		q, _, _ = strings.Cut(q, "#")
		q = "?" + query(q)
	}
	s, _, cut := strings.Cut(s, "#")
	if cut {
		q = "#" + Hidden
	}
	return authority(s) + q
}

// authority takes user and password out of what is no URL.
func authority(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if ok {
		scheme += "://"
	} else {
		scheme, rest = "", s
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		return scheme + Hidden + rest[at:]
	}
	// The beginning of one that was split as a list: http://user:pass,word@host.
	if colon := strings.IndexByte(rest, ':'); ok && colon >= 0 {
		return scheme + rest[:colon] + ":" + Hidden
	}
	return s
}

// name is what the name of a value may look like; another is not shown either.
var name = regexp.MustCompile(`^[0-9A-Za-z_.\-\[\]]{1,64}$`)

func query(raw string) string {
	if raw == "" {
		return ""
	}
	parts := strings.FieldsFunc(raw, func(r rune) bool { return r == '&' || r == ';' })
	for i, p := range parts {
		k, v, ok := strings.Cut(p, "=")
		switch {
		case !ok || !name.MatchString(k):
			parts[i] = Hidden
		case v != "":
			parts[i] = k + "=" + Hidden
		}
	}
	return strings.Join(parts, "&")
}

// Secrets are the values of a URL that URL does not show, to be taken out of what
// others say.
type Secrets struct{ r *strings.Replacer }

// shortest is the length of values that Hide looks for: shorter ones are in any text.
const shortest = 4

// SecretsOf returns those of u.
func SecretsOf(u *url.URL) Secrets {
	var all []string
	add := func(s string) {
		if len(s) < shortest || slices.Contains(all, s) {
			return
		}
		all = append(all, s)
	}
	both := func(s string, unescape func(string) (string, error)) {
		add(s)
		if plain, err := unescape(s); err == nil {
			add(plain)
		}
	}
	if u.User != nil {
		p, ok := u.User.Password()
		if !ok {
			p = u.User.Username()
		}
		add(p)
		add(url.QueryEscape(p))
		add(url.PathEscape(p))
	}
	for _, part := range strings.FieldsFunc(u.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		k, v, ok := strings.Cut(part, "=")
		if !ok || !name.MatchString(k) {
			both(k, url.QueryUnescape)
		}
		both(v, url.QueryUnescape)
	}
	add(u.Fragment)
	// Longest first: one may hold another.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, s := range all {
		pairs = append(pairs, s, Hidden)
	}
	return Secrets{strings.NewReplacer(pairs...)}
}

// Hide returns text without them. The zero Secrets hide nothing.
func (s Secrets) Hide(text string) string {
	if s.r == nil {
		return text
	}
	return s.r.Replace(text)
}
