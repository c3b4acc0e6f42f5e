package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

func TestReadExperimental(t *testing.T) {
	dir := t.TempDir()
	conf, more := filepath.Join(dir, "xapi.conf"), filepath.Join(dir, "xapi.conf.d")
	read := func() string {
		t.Helper()
		v, err := readExperimental(conf, more)
		qt.Assert(t, qt.IsNil(err))
		return v
	}
	put := func(name, text string) {
		t.Helper()
		qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(name), 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(name, []byte(text), 0o600)))
	}
	qt.Check(t, qt.Equals(read(), "smapi")) // no file
	put(conf, "# observer-experimental-components = xapi\nmax-spans = 5\n")
	qt.Check(t, qt.Equals(read(), "smapi"))
	put(conf, "observer-experimental-components = xapi-clusterd, smapi # both\n")
	qt.Check(t, qt.Equals(read(), "xapi-clusterd, smapi"))
	put(filepath.Join(more, "20-b.conf"), "observer-experimental-components=\n")
	put(filepath.Join(more, "10-a.conf"), "observer-experimental-components=xenopsd\n")
	qt.Assert(t, qt.IsNil(os.Mkdir(filepath.Join(more, "30-directory"), 0o755)))
	qt.Check(t, qt.Equals(read(), "")) // the last file counts; empty is none
}

func TestExperimentalComponents(t *testing.T) {
	c, err := experimentalComponents("")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(c, 0))
	c, err = experimentalComponents("smapi, xapi-clusterd")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(c, event.Of(event.SMAPI, event.XapiClusterd)))
	_, err = experimentalComponents("smapi,nonsense")
	qt.Check(t, qt.ErrorMatches(err, `--experimental-components: no component "nonsense"; there are xapi, .*`))
}
