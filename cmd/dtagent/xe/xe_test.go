package xe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/observer"
)

func args(t *testing.T, in ...string) []Arg {
	t.Helper()
	out, err := ParseArgs(in)
	qt.Assert(t, qt.IsNil(err))
	return out
}

func TestSetAndGet(t *testing.T) {
	o := observer.Observer{}
	err := Set(&o, args(t,
		"name-label=dt", "name-description=a=b", "host-uuids=h1,h2", "attributes=team:storage,url:http://x:1/",
		"attributes:with.comma=a,b", "endpoints=bugtool,http://h:9411/api/v2/spans", "components=xapi,xenopsd", "enabled=true"))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(o, observer.Observer{
		NameLabel: "dt", NameDescription: "a=b", Hosts: []string{"h1", "h2"},
		Attributes: map[string]string{"team": "storage", "url": "http://x:1/", "with.comma": "a,b"},
		Endpoints:  []string{"bugtool", "http://h:9411/api/v2/spans"}, Components: []string{"xapi", "xenopsd"}, Enabled: true,
	}))
	for name, want := range map[string]string{
		"name-label": "dt", "enabled": "true", "host-uuids": "h1; h2", "components": "xapi; xenopsd",
		"attributes": "team: storage; url: http://x:1/; with.comma: a,b",
	} {
		got, err := Get(&o, name, "")
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(got, want))
	}
	got, err := Get(&o, "attributes", "team")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(got, "storage"))

	qt.Assert(t, qt.IsNil(Add(&o, "endpoints", "bugtool", "")))
	qt.Assert(t, qt.IsNil(Add(&o, "components", "smapi", "")))
	qt.Assert(t, qt.IsNil(Add(&o, "attributes", "k2", "v")))
	qt.Assert(t, qt.IsNil(Remove(&o, "endpoints", "bugtool")))
	qt.Assert(t, qt.IsNil(Remove(&o, "attributes", "team")))
	qt.Assert(t, qt.IsNil(Clear(&o, "host-uuids")))
	qt.Assert(t, qt.DeepEquals(o.Components, []string{"xapi", "xenopsd", "smapi"}))
	qt.Assert(t, qt.DeepEquals(o.Endpoints, []string{"http://h:9411/api/v2/spans"}))
	qt.Assert(t, qt.Equals(o.Attributes["k2"], "v"))
	qt.Assert(t, qt.HasLen(o.Hosts, 0))
}

func TestWrongWords(t *testing.T) {
	for in, want := range map[string]string{
		"dt":                 `"dt" is not of the form name=value, as in name-label=dt`,
		"=x":                 `.*not of the form name=value.*`,
		"name=dt":            `no parameter "name"; there are uuid, name-label, .*`,
		"uuid=1":             `uuid cannot be changed`,
		"enabled=maybe":      `enabled: "maybe" is neither true nor false`,
		"attributes=novalue": `attributes: "novalue" is not of the form key:value; .*`,
		"endpoints:k=v":      `endpoints is no map: write endpoints=…`,
	} {
		parsed, err := ParseArgs([]string{in})
		if err == nil {
			err = Set(&observer.Observer{}, parsed)
		}
		qt.Check(t, qt.ErrorMatches(err, want), qt.Commentf("%s", in))
	}
	_, err := ParseArgs([]string{"enabled=true", "enabled=false"})
	qt.Assert(t, qt.ErrorMatches(err, "enabled is given twice"))
	o := observer.Observer{}
	qt.Assert(t, qt.ErrorMatches(Add(&o, "enabled", "x", ""), "enabled is neither a set nor a map.*"))
	qt.Assert(t, qt.ErrorMatches(Remove(&o, "enabled", "x"), "enabled is neither a set nor a map.*"))
	qt.Assert(t, qt.ErrorMatches(Clear(&o, "enabled"), "enabled is neither a set nor a map.*"))
	_, err = Get(&o, "attributes", "absent")
	qt.Assert(t, qt.ErrorMatches(err, `attributes has no key "absent"`))
}

func TestStore(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "observers.d")}
	entries, mistakes, err := s.List()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(entries, 0))
	qt.Assert(t, qt.HasLen(mistakes, 0))

	id, err := s.Create(observer.Observer{NameLabel: "dt", Endpoints: []string{"bugtool"}, Enabled: true})
	qt.Assert(t, qt.IsNil(err))
	info, err := os.Stat(filepath.Join(s.Dir, id+".json"))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(info.Mode().Perm(), 0o600))

	_, err = s.Create(observer.Observer{NameLabel: "bad", Endpoints: []string{"ftp://h"}})
	qt.Assert(t, qt.ErrorMatches(err, `(?s).*INVALID_VALUE.*endpoint.*ftp://h.*`))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(s.Dir, "broken.json"), []byte("{"), 0o600)))

	e, err := s.Find(strings.ToUpper(id))
	qt.Assert(t, qt.IsNil(err))
	e.Observer.Components = []string{"xapi"}
	qt.Assert(t, qt.IsNil(s.Save(e)))

	entries, mistakes, err = s.List()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(mistakes, 1))
	qt.Assert(t, qt.HasLen(entries, 1))
	qt.Assert(t, qt.DeepEquals(entries[0].Observer.Components, []string{"xapi"}))

	_, err = s.Find("nobody")
	qt.Assert(t, qt.ErrorIs(err, ErrNone))
	qt.Assert(t, qt.ErrorMatches(err, `(?s).*could not be read.*broken.json.*`))
	qt.Assert(t, qt.IsNil(s.Destroy(id)))
	qt.Assert(t, qt.ErrorIs(s.Destroy(id), ErrNone))
	left, err := os.ReadDir(s.Dir)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(left, 1)) // no temporary files
}
