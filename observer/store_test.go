package observer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc", "observers.d")
	s := NewStore(dir)
	obs, err := s.List()
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.HasLen(obs, 0))
	_, err = s.Get(uuidA)
	qt.Assert(t, qt.ErrorIs(err, ErrNotFound))
	qt.Assert(t, qt.ErrorIs(s.Destroy(uuidA), ErrNotFound))

	o, err := FromWords("name-label=dt", "enabled=true", "attributes=custom.k:v,url:http://x:1", "attributes:list.k=a,b", "components=xapi, xenopsd")
	qt.Assert(t, qt.IsNil(err))
	id, err := s.Create(o)
	qt.Assert(t, qt.IsNil(err))
	st, err := os.Stat(filepath.Join(dir, id+".json"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(st.Mode().Perm(), 0o600))
	o.UUID, o.Hosts = id, []string{}
	got, err := s.Get(id)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(got, Observer{UUID: id, NameLabel: "dt", Enabled: true, Hosts: []string{}, Endpoints: []string{"bugtool"},
		Components: []string{"xapi", "xenopsd"}, Attributes: map[string]string{"custom.k": "v", "url": "http://x:1", "list.k": "a,b"}}))
	_, err = s.Create(got)
	qt.Check(t, qt.ErrorMatches(err, `observer .* exists already`))

	qt.Assert(t, qt.IsNil(s.ParamSet(id, "endpoints=bugtool,http://10.0.0.9:9411/api/v2/spans", "enabled=false", "name-description=a=b")))
	qt.Assert(t, qt.IsNil(s.ParamAdd(id, "components", "smapi", "smapi")))
	qt.Assert(t, qt.IsNil(s.ParamAdd(id, "attributes", "more.k=x:y", "less.k:1")))
	qt.Assert(t, qt.IsNil(s.ParamRemove(id, "components", "xapi")))
	qt.Assert(t, qt.IsNil(s.ParamRemove(id, "attributes", "custom.k")))
	for param, want := range map[string]string{
		"uuid": id, "name-label": "dt", "name-description": "a=b", "host-uuids": "", "enabled": "false", "components": "xenopsd; smapi",
		"endpoints": "bugtool; http://10.0.0.9:9411/api/v2/spans", "attributes": "less.k: 1; list.k: a,b; more.k: x:y; url: http://x:1",
	} {
		v, err := s.ParamGet(id, param, "")
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(v, want))
	}
	v, err := s.ParamGet(id, "attributes", "more.k")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(v, "x:y"))

	// Nothing invalid is written.
	before, err := os.ReadFile(filepath.Join(dir, id+".json"))
	qt.Assert(t, qt.IsNil(err))
	for _, words := range [][]string{
		{"endpoints=ftp://x"}, {"components=nope"}, {"attributes:A=b"}, {"attributes=ab"}, {"enabled=maybe"}, {"host-uuids=me"},
		{"uuid=" + uuidA}, {"colour=red"}, {"enabled"},
	} {
		qt.Check(t, qt.IsNotNil(s.ParamSet(id, words...)))
	}
	qt.Check(t, qt.IsNotNil(s.ParamAdd(id, "enabled", "x")))
	qt.Check(t, qt.IsNotNil(s.ParamRemove(id, "components", "xapi")))
	qt.Check(t, qt.IsNotNil(s.ParamRemove(id, "attributes", "custom.k")))
	var ms Mistakes
	_, err = s.Create(Observer{Endpoints: []string{"x"}})
	qt.Check(t, qt.IsTrue(errors.As(err, &ms)))
	_, err = FromWords("enabled=true")
	qt.Check(t, qt.ErrorMatches(err, `name-label is missing.*`))
	after, err := os.ReadFile(filepath.Join(dir, id+".json"))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(after, before))

	// An empty list stays an empty list when read again.
	qt.Assert(t, qt.IsNil(s.ParamSet(id, "endpoints=")))
	v, err = s.ParamGet(id, "endpoints", "")
	qt.Check(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(v, ""))

	// A file made by hand keeps its name; bad ones are named.
	write(t, dir+"/hand.json", `{"name_label":"hand"}`)
	write(t, dir+"/bad.json", `{`)
	obs, err = s.List()
	qt.Check(t, qt.HasLen(obs, 2))
	qt.Check(t, qt.ErrorMatches(err, `.*bad\.json: line 1: is not JSON.*`))
	qt.Assert(t, qt.IsNil(s.ParamSet(fileUUID("hand.json"), "name-label=changed")))
	o, err = Parse(dir+"/hand.json", must(os.ReadFile(dir+"/hand.json")))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(o.NameLabel, "changed"))
	_, err = s.Get(uuidB)
	qt.Check(t, qt.ErrorMatches(err, `(?s)observer .*: no such Observer in .*could not be read:\n.*bad\.json.*`))

	qt.Assert(t, qt.IsNil(s.Destroy(id)))
	_, err = os.Stat(filepath.Join(dir, id+".json"))
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
	write(t, dir+"/"+uuidB+".json", `{"enabled":7}`)
	qt.Check(t, qt.IsNil(s.Destroy(uuidB)))
	qt.Check(t, qt.ErrorIs(s.Destroy(uuidB), ErrNotFound))
	qt.Check(t, qt.ErrorIs(s.Destroy("bad"), ErrNotFound))
	left, err := filepath.Glob(dir + "/.*")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(left, 0))
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestStoreTogether: changes of several writers are all there in the end.
func TestStoreTogether(t *testing.T) {
	dir := t.TempDir()
	id, err := NewStore(dir).Create(Observer{})
	qt.Assert(t, qt.IsNil(err))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 5 {
				if err := NewStore(dir).ParamAdd(id, "attributes", fmt.Sprintf("k%d.%d=v", i, k)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	o, err := NewStore(dir).Get(id)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(o.Attributes, 40))
}

func FuzzSetWords(f *testing.F) {
	f.Add("attributes=a:b:c,d:e")
	f.Add("attributes:=x")
	f.Add("host-uuids=,,")
	f.Fuzz(func(t *testing.T, w string) {
		o := Observer{}
		if o.SetWords(w) != nil {
			return
		}
		_ = o.Validate()
		for _, p := range ParamNames() {
			if _, err := o.Param(p, ""); err != nil {
				t.Fatal(err)
			}
		}
	})
}
