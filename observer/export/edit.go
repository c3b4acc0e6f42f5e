package export

import (
	"maps"
	"slices"

	"github.com/xenserver/dtagent/observer/glob"
	"go.opentelemetry.io/otel/attribute"
)

// Redacted takes the place of a value that an Edit redacts.
const Redacted = "[redacted]"

// Edit says how the final tags of an Observer's spans are changed before they
// leave: which are redacted and which renamed. It is not changed once made. A
// nil Edit changes nothing.
type Edit struct {
	redact glob.Patterns
	rename map[attribute.Key]attribute.Key
}

// NewEdit returns the Edit that redacts the values of tags whose key, before or
// after renaming, matches one of the patterns redact (see glob.Pattern;
// malformed ones match nothing), and renames the keys that rename has. It is nil
// when there is nothing to do. Keys that are not Editable stay as they are.
func NewEdit(redact []string, rename map[string]string) *Edit {
	e := &Edit{redact: glob.ParseAll(redact), rename: map[attribute.Key]attribute.Key{}}
	for from, to := range rename {
		if from, to := attribute.Key(from), attribute.Key(to); to != from && Editable(from) && CanName(to) {
			e.rename[from] = to
		}
	}
	if len(e.redact) == 0 && len(e.rename) == 0 {
		return nil
	}
	return e
}

// Editable tells whether the tag of that key may be redacted and renamed: all
// but service.name, by which receivers sort spans, and those that say how far the
// span can be trusted.
func Editable(k attribute.Key) bool { return k != KeyServiceName && CanName(k) }

// CanName tells whether a tag may be renamed to k: not to one that says how far
// the span can be trusted.
func CanName(k attribute.Key) bool {
	return k != "" && k != KeyLinkMethod && k != KeyIncomplete && k != KeyError
}

// Equal tells whether both do the same.
func (e *Edit) Equal(f *Edit) bool {
	if e == nil || f == nil {
		return e == f
	}
	return maps.Equal(e.rename, f.rename) && slices.Equal(e.redact, f.redact)
}

// apply edits tags, which are in descending key order, each key once, and stay
// so. All renamings happen at once, so a=b,b=a swaps. When a tag gets a key that
// another has, the renamed one wins. It does not allocate.
func (e *Edit) apply(tags []attribute.KeyValue) []attribute.KeyValue {
	if len(e.redact) > 0 {
		for i := range tags {
			if k := tags[i].Key; Editable(k) && (e.redact.Match(string(k)) || e.redact.Match(string(e.rename[k]))) {
				tags[i].Value = attribute.StringValue(Redacted)
			}
		}
	}
	if len(e.rename) == 0 {
		return tags
	}
	// The renamed ones go to the end, where SortTags finds them last.
	end := len(tags)
	for i := 0; i < end; {
		to, ok := e.rename[tags[i].Key]
		if !ok {
			i++
			continue
		}
		v := tags[i].Value
		copy(tags[i:], tags[i+1:])
		tags[len(tags)-1] = attribute.KeyValue{Key: to, Value: v}
		end--
	}
	if end == len(tags) {
		return tags
	}
	return SortTags(tags)
}
