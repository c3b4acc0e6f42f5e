package observer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// MaxFileBytes is the largest Observer file that is read.
const MaxFileBytes = 1 << 20

var fieldNames = []string{"uuid", "name_label", "name_description", "hosts", "attributes", "endpoints", "components", "enabled"}

// fileSpace is the name space of the uuids of Observers whose file names none.
var fileSpace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/xenserver/dtagent/observers.d"))

// Parse reads the Observer in a file of that name and validates it. Everything
// that is wrong is in the one error, which is of type Mistakes; the Observer is
// then to be thrown away.
//
// Keys that are absent have XAPI's defaults, but endpoints has that of the xe
// command, bugtool. A file without uuid has the one in its name, and otherwise
// one made from its name, the same at each reading.
func Parse(file string, data []byte) (Observer, error) {
	p := parser{file: file}
	o := Observer{Endpoints: []string{Bugtool}}
	if len(data) > MaxFileBytes {
		p.mistake("", fmt.Sprintf("is larger than %d bytes", MaxFileBytes), "an Observer needs a few hundred")
		return Observer{}, p.found.err()
	}
	p.object("", data, func(key string, raw json.RawMessage) {
		switch key {
		case "uuid":
			p.string(key, raw, &o.UUID)
		case "name_label":
			p.string(key, raw, &o.NameLabel)
		case "name_description":
			p.string(key, raw, &o.NameDescription)
		case "hosts":
			p.strings(key, raw, &o.Hosts)
		case "attributes":
			o.Attributes = map[string]string{}
			p.object(key, raw, func(k string, raw json.RawMessage) {
				var v string
				if p.string(fmt.Sprintf("attributes: %q", shorten(k)), raw, &v) {
					o.Attributes[k] = v
				}
			})
		case "endpoints":
			p.strings(key, raw, &o.Endpoints)
		case "components":
			p.strings(key, raw, &o.Components)
		case "enabled":
			if err := json.Unmarshal(raw, &o.Enabled); err != nil || raw[0] == 'n' {
				p.wrongType(key, "true or false", raw)
			}
		default:
			p.mistake(key, "no such key", "the keys are "+strings.Join(fieldNames, ", ")+suggest(key))
		}
	})
	for _, m := range o.mistakes() {
		m.File = file
		p.found = append(p.found, m)
	}
	if len(p.found) > 0 {
		return Observer{}, p.found
	}
	if o.UUID == "" {
		o.UUID = fileUUID(file)
	}
	o.UUID = strings.ToLower(o.UUID)
	return o, nil
}

func fileUUID(file string) string {
	base := strings.TrimSuffix(filepath.Base(file), ".json")
	if u, err := uuid.Parse(base); err == nil && len(base) == 36 {
		return u.String()
	}
	return uuid.NewSHA1(fileSpace, []byte(base)).String()
}

type parser struct {
	file  string
	found Mistakes
}

func (p *parser) mistake(key, rule, advice string) {
	p.found = append(p.found, &Mistake{File: p.file, Key: shorten(key), Rule: rule, Advice: advice})
}

func (p *parser) wrongType(key, want string, raw json.RawMessage) {
	p.mistake(key, fmt.Sprintf("must be %s, is %s", want, jsonKind(raw)), "")
}

// object hands each pair of a JSON object to f. Unlike encoding/json it takes
// keys by their exact spelling and does not pass over a key that stands twice.
func (p *parser) object(key string, data []byte, f func(string, json.RawMessage)) {
	if first := bytes.TrimLeft(data, " \t\r\n"); len(first) == 0 || first[0] != '{' && json.Valid(data) {
		p.wrongType(key, "a JSON object {…}", first)
		return
	}
	d := json.NewDecoder(bytes.NewReader(data))
	seen := map[string]bool{}
	if _, err := d.Token(); err != nil {
		p.syntax(key, data, d, err)
		return
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			p.syntax(key, data, d, err)
			return
		}
		name, ok := t.(string)
		if !ok {
			p.mistake(key, "is not JSON", "")
			return
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			p.syntax(key, data, d, err)
			return
		}
		if seen[name] {
			p.mistake(strings.TrimPrefix(key+": "+name, ": "), "stands twice", "remove one")
			continue
		}
		seen[name] = true
		f(name, raw)
	}
	if _, err := d.Token(); err != nil {
		p.syntax(key, data, d, err)
		return
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		p.mistake(key, fmt.Sprintf("line %d: there is more after the closing }", line(data, d.InputOffset())), "a file holds one Observer")
	}
}

func (p *parser) syntax(key string, data []byte, d *json.Decoder, err error) {
	at := d.InputOffset()
	var s *json.SyntaxError
	if errors.As(err, &s) {
		at = s.Offset
	}
	text := err.Error()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		text, at = "it ends too early", int64(len(data))
	}
	p.mistake(key, fmt.Sprintf("line %d: is not JSON: %s", line(data, at), text), "check commas, quotes and brackets there")
}

func line(data []byte, at int64) int {
	return 1 + bytes.Count(data[:min(max(at, 0), int64(len(data)))], []byte{'\n'})
}

func (p *parser) string(key string, raw json.RawMessage, to *string) bool {
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, to) != nil {
		p.wrongType(key, `a string "…"`, raw)
		return false
	}
	return true
}

func (p *parser) strings(key string, raw json.RawMessage, to *[]string) {
	var items []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
		p.wrongType(key, `a list of strings ["…"]`, raw)
		return
	}
	*to = make([]string, 0, min(len(items), 64))
	for i, item := range items {
		var s string
		if p.string(fmt.Sprintf("%s: item %d", key, i+1), item, &s) {
			*to = append(*to, s)
		}
	}
}

func jsonKind(raw []byte) string {
	if len(raw) == 0 {
		return "empty"
	}
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	return "a number"
}

// suggest names the field that was probably meant: xe writes name-label, and
// the plural s is easily forgotten.
func suggest(key string) string {
	norm := func(s string) string {
		s = strings.ToLower(strings.ReplaceAll(s, "-", "_"))
		return strings.TrimSuffix(s, "s")
	}
	want := norm(key)
	if want == "host_uuid" {
		want = "host"
	}
	if i := slices.IndexFunc(fieldNames, func(f string) bool { return norm(f) == want }); i >= 0 {
		return fmt.Sprintf("; write %q", fieldNames[i])
	}
	return ""
}
