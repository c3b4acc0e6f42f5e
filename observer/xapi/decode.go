package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/observer"
)

// What XAPI says is not trusted: these bound what is made of one answer, whose
// size has a bound already. Small values would grow most, so it is their number
// that counts.
const (
	maxObservers = 1000
	maxSkipped   = 100_000 // Observers beyond these that are counted
	maxItems     = 512     // hosts, attributes, endpoints or components of one Observer
	maxEvents    = 20_000
	maxToken     = 256
	maxReference = 128
)

var (
	errEnough = errors.New("enough")
	errKind   = errors.New("another kind of value")
)

// eachMember hands the members of a JSON object to f until it returns an error,
// without building the whole object. raw is valid JSON or empty.
func eachMember(raw json.RawMessage, f func(key string, value json.RawMessage) error) error {
	return each(raw, '{', f)
}

// eachItem does so with the items of an array.
func eachItem(raw json.RawMessage, f func(value json.RawMessage) error) error {
	return each(raw, '[', func(_ string, value json.RawMessage) error { return f(value) })
}

func each(raw json.RawMessage, open json.Delim, f func(string, json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != open {
		return errKind
	}
	for d.More() {
		key := ""
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			key, _ = t.(string)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

// text reads a string, and nothing else: null is none.
func text(raw json.RawMessage) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

func reference(raw json.RawMessage) (string, bool) {
	s, ok := text(raw)
	return s, ok && s != "" && len(s) <= maxReference
}

// decodeStrings reads a list of at most maxItems strings.
func decodeStrings(raw json.RawMessage) ([]string, error) {
	out := []string{}
	err := eachItem(raw, func(item json.RawMessage) error {
		s, ok := text(item)
		if !ok {
			return errKind
		}
		if len(out) == maxItems {
			return fmt.Errorf("more than %d items", maxItems)
		}
		out = append(out, s)
		return nil
	})
	if errors.Is(err, errKind) {
		err = errors.New("must be a list of strings")
	}
	return out, err
}

func decodeMap(raw json.RawMessage) (map[string]string, error) {
	out := map[string]string{}
	err := eachMember(raw, func(key string, value json.RawMessage) error {
		s, ok := text(value)
		if !ok {
			return errKind
		}
		if len(out) == maxItems {
			return fmt.Errorf("more than %d items", maxItems)
		}
		out[key] = s
		return nil
	})
	if errors.Is(err, errKind) {
		err = errors.New("must be an object of strings")
	}
	return out, err
}

// observerFields are what XAPI has in each record of the class. It always sends
// them all; name_description, which changes nothing, may be absent.
var observerFields = []string{"uuid", "name_label", "hosts", "attributes", "endpoints", "components", "enabled"}

// decodeObserver reads the record of an Observer. Fields that are absent or of a
// wrong type are told; nothing is guessed then: an absent list of hosts would
// mean all of them. Fields of later versions are passed over.
func decodeObserver(raw json.RawMessage) (observer.Observer, []string) {
	var o observer.Observer
	var wrong []string
	absent := slices.Clone(observerFields)
	err := eachMember(raw, func(key string, value json.RawMessage) error {
		var err error
		str := func(to *string) {
			var ok bool
			if *to, ok = text(value); !ok {
				err = errors.New("must be a string")
			}
		}
		switch key {
		case "uuid":
			str(&o.UUID)
			o.UUID = strings.ToLower(o.UUID)
		case "name_label":
			str(&o.NameLabel)
		case "name_description":
			str(&o.NameDescription)
		case "hosts":
			o.Hosts, err = decodeStrings(value)
		case "attributes":
			o.Attributes, err = decodeMap(value)
		case "endpoints":
			o.Endpoints, err = decodeStrings(value)
		case "components":
			o.Components, err = decodeStrings(value)
		case "enabled":
			switch string(value) {
			case "true", "false":
				o.Enabled = value[0] == 't'
			default:
				err = errors.New("must be true or false")
			}
		default:
			return nil
		}
		absent = slices.DeleteFunc(absent, func(f string) bool { return f == key })
		if err != nil && len(wrong) < maxItems {
			wrong = append(wrong, key+": "+err.Error())
		}
		return nil
	})
	switch {
	case err != nil:
		return o, []string{"the record is not an object"}
	case len(absent) > 0:
		wrong = append(wrong, "not there: "+strings.Join(absent, ", "))
	case o.UUID == "" && len(wrong) == 0:
		wrong = append(wrong, "uuid: is empty")
	}
	return o, wrong
}

// identity is what is wanted of a host or pool.
type identity struct{ uuid, name string }

// decodeIdentity reads uuid and name_label of a record.
func decodeIdentity(raw json.RawMessage) (identity, bool) {
	var i identity
	var found, named bool
	err := eachMember(raw, func(key string, value json.RawMessage) error {
		switch key {
		case "uuid":
			i.uuid, found = reference(value)
			i.uuid = strings.ToLower(i.uuid)
		case "name_label":
			i.name, named = text(value)
		}
		return nil
	})
	return i, err == nil && found && named
}

// change is one event of event.from.
type change struct {
	class, operation, ref string
	snapshot              json.RawMessage // nil: none
}

// batch is the answer of event.from.
type batch struct {
	changes  []change
	overflow bool // there were more than maxEvents, or some made no sense
	count    int  // Observers there are; -1: not told
	token    string
}

// decodeBatch reads the answer of event.from. It fails only without a token:
// what else is missing shows in overflow and count.
func decodeBatch(raw json.RawMessage) (batch, bool) {
	b := batch{count: -1}
	err := eachMember(raw, func(key string, value json.RawMessage) error {
		switch key {
		case "token":
			b.token, _ = text(value)
		case "valid_ref_counts":
			var n struct {
				Observer json.Number `json:"observer"` // XAPI's integers are strings in some encodings
			}
			if json.Unmarshal(value, &n) == nil {
				if i, err := strconv.Atoi(n.Observer.String()); err == nil && i >= 0 {
					b.count = i
				}
			}
		case "events":
			n := 0
			err := eachItem(value, func(item json.RawMessage) error {
				if n++; n > maxEvents {
					return errEnough
				}
				c, ok := decodeChange(item)
				if ok {
					b.changes = append(b.changes, c)
				}
				b.overflow = b.overflow || !ok
				return nil
			})
			b.overflow = b.overflow || err != nil
		}
		return nil
	})
	return b, err == nil && b.token != "" && len(b.token) <= maxToken
}

func decodeChange(raw json.RawMessage) (change, bool) {
	var c change
	ok := false
	err := eachMember(raw, func(key string, value json.RawMessage) error {
		switch key {
		case "class":
			c.class, _ = text(value)
			c.class = strings.ToLower(c.class)
		case "operation":
			c.operation, _ = text(value)
		case "ref":
			c.ref, ok = reference(value)
		case "snapshot":
			if string(value) != "null" {
				c.snapshot = value
			}
		}
		return nil
	})
	return c, err == nil && ok && c.class != "" && slices.Contains([]string{"add", "mod", "del"}, c.operation)
}
