//go:build linux

package guestio

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// The page names every field of the JSON, and every layer.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/io.md")
	qt.Assert(t, qt.IsNil(err))
	named := func(name string) {
		t.Helper()
		qt.Check(t, qt.IsTrue(strings.Contains(string(page), "`"+name+"`") || strings.Contains(string(page), "`"+name+"[]`")), qt.Commentf("%s is not in docs/io.md", name))
	}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(of.Elem())
		case reflect.Struct:
			if seen[of] || of.PkgPath() != reflect.TypeFor[Sample]().PkgPath() {
				return
			}
			seen[of] = true
			for i := range of.NumField() {
				f := of.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				if name == "-" {
					continue
				}
				if !f.Anonymous {
					named(name)
				}
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[Sample]())
	for l := range event.NumLayers {
		named(l.String())
	}
}
