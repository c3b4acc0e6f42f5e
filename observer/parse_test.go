package observer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

func TestParseDefaults(t *testing.T) {
	o, err := Parse("/etc/dtagent/observers.d/hand made.json", []byte(`{}`))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(o, Observer{UUID: fileUUID("hand made.json"), Endpoints: []string{"bugtool"}}))
	qt.Check(t, qt.IsFalse(o.On("any")))
	qt.Check(t, qt.Equals(o.Wants(), event.DefaultComponents()))
	p, _ := Parse("x/other.json", []byte(`{}`))
	qt.Check(t, qt.IsTrue(len(p.UUID) == 36 && p.UUID != o.UUID))
	q, _ := Parse("x/"+uuidA+".json", []byte(`{"endpoints":[]}`))
	qt.Check(t, qt.Equals(q.UUID, uuidA))
	qt.Check(t, qt.HasLen(q.Endpoints, 0))
}

func TestParse(t *testing.T) {
	in := `{"uuid":"AAAAAAAA-0000-4000-8000-000000000001","name_label":"n","name_description":"d","hosts":["` + hostA + `"],
		"attributes":{"custom.k":"v","dtagent.sampler":"x"},"endpoints":["bugtool","http://10.0.0.9:9411/api/v2/spans","https://[fe80::1]/","otlp+https://u:p@collector:4318/v1/traces","http://Zip_kin.example.com."],
		"components":["xapi","smapi"],"enabled":true}`
	o, err := Parse("f", []byte(in))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(o.UUID, uuidA))
	qt.Check(t, qt.IsTrue(o.On(hostA) && o.On(strings.ToUpper(hostA)) && !o.On(uuidB)))
	qt.Check(t, qt.DeepEquals(o.Warnings(), []string{`attribute "dtagent.sampler": "x" is not a sampler; write one of always_on, always_off, traceidratio, such as traceidratio with dtagent.sampler.arg=0.1; all traces are taken`}))
	out, err := json.Marshal(o)
	qt.Assert(t, qt.IsNil(err))
	again, err := Parse("f", out)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(again, o))
}

func TestParseMistakes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"endpoint":["bugtool"]}`, `f: endpoint: no such key; the keys are uuid, name_label, name_description, hosts, attributes, endpoints, components, enabled; write "endpoints"`},
		{`{"name-label":"x"}`, `write "name_label"`},
		{`{"Enabled":true}`, `write "enabled"`},
		{`{"enabled":"yes"}`, `f: enabled: must be true or false, is a string`},
		{`{"enabled":null}`, `f: enabled: must be true or false, is null`},
		{`{"enabled":1}`, `is a number`},
		{`{"hosts":"x"}`, `f: hosts: must be a list of strings ["…"], is a string`},
		{`{"hosts":null}`, `f: hosts: must be a list of strings ["…"], is null`},
		{`{"hosts":[1]}`, `f: hosts: item 1: must be a string "…", is a number`},
		{`{"attributes":["a"]}`, `f: attributes: must be a JSON object {…}, is a list`},
		{`{"attributes":null}`, `f: attributes: must be a JSON object {…}, is null`},
		{`{"attributes":{"ab":1}}`, `f: attributes: "ab": must be a string "…", is a number`},
		{`{"attributes":{"ab":"1","ab":"2"}}`, `f: attributes: ab: stands twice; remove one`},
		{`{"name_label":"a","name_label":"b"}`, `f: name_label: stands twice`},
		{`{"components":["xapi","qemu2"]}`, `f: components: INVALID_VALUE component "qemu2": no component "qemu2"; there are xapi, xenopsd, xapi-clusterd, smapi, `},
		{`{"endpoints":["ftp://x"]}`, `f: endpoints: INVALID_VALUE endpoint "ftp://x": the scheme "ftp" is not supported, only http, https, otlp+http and otlp+https; write bugtool or a URL such as`},
		{`{"endpoints":["otlp://x:4318"]}`, `the scheme "otlp" is not supported, only http, https, otlp+http and otlp+https; write bugtool or a URL such as http://10.0.0.9:9411/api/v2/spans or otlp+http://10.0.0.9:4318`},
		{`{"endpoints":["OTLP+http://x:4318"]}`, `the scheme "OTLP+http" must be in lower case`},
		{`{"endpoints":["otlp+https://-x:4318"]}`, `the host "-x" is neither`},
		{`{"endpoints":["otlp+http://x:secret@ho%st/"]}`, `"otlp+http://xxxxx@ho%st/"`},
		{`{"endpoints":["ftp://x/?token=CANARY#CANARY"]}`, `endpoint "ftp://x/?token=xxxxx#xxxxx": the scheme`},
		{`{"attributes":{"dtagent.Endpoints":"http://x/?token=CANARY"}}`, `attributes "dtagent.Endpoints:http://x/?token=xxxxx"`},
		{`{"endpoints":["x:secret@host"]}`, `"xxxxx@host"`},
		{`{"endpoints":["http//x:secret@host"]}`, `"xxxxx@host"`},
		{`{"endpoints":["http://x:p/secret@host"]}`, `"http://xxxxx@host"`},
		{`{"endpoints":["http://x:secret"]}`, `"http://x:xxxxx"`},
		{`{"endpoints":["HTTP://x"]}`, `the scheme "HTTP" must be in lower case`},
		{`{"endpoints":["Bugtool"]}`, `must be bugtool or an http, https, otlp+http or otlp+https URL`},
		{`{"endpoints":[""]}`, `INVALID_VALUE endpoint "": must be bugtool`},
		{`{"endpoints":["http://"]}`, `the host "" is neither an IP address nor a domain name`},
		{`{"endpoints":["http://a b/"]}`, `is not a URL`},
		{`{"endpoints":["http://-a.com/"]}`, `the host "-a.com"`},
		{`{"endpoints":["http://x:secret@ho%st/"]}`, `"http://xxxxx@ho%st/"`},
		{`{"attributes":{"a":"v"}}`, `f: attributes: INVALID_VALUE attributes "a:v": key "a" must be 2 to 255 of a-z`},
		{`{"attributes":{"Ab":"v"}}`, `INVALID_VALUE attributes "Ab:v"`},
		{`{"attributes":{"a-b":"v"}}`, `INVALID_VALUE attributes "a-b:v"`},
		{`{"attributes":{"ab.":"v"}}`, `INVALID_VALUE attributes "ab.:v"`},
		{`{"attributes":{"ab\n":"v"}}`, `INVALID_VALUE attributes "ab\n:v"`},
		{`{"hosts":["me"]}`, `f: hosts: INVALID_VALUE host "me": must be the uuid of a host; see INSTALLATION_UUID`},
		{`{"uuid":"x"}`, `f: uuid: INVALID_VALUE uuid "x"`},
		{`[]`, `f: must be a JSON object {…}, is a list`},
		{``, `f: must be a JSON object {…}, is empty`},
		{"{\n\"enabled\":true,\n}", `f: line 3: is not JSON`},
		{"{\n\"enabled\":tru", `f: line 2: is not JSON: it ends too early`},
		{`{"enabled":true} {}`, `f: line 1: there is more after the closing }; a file holds one Observer`},
		{strings.Repeat(`{"a":`, 100_000), `is not JSON`},
		{strings.Repeat(" ", MaxFileBytes+1), `f: is larger than 1048576 bytes`},
	} {
		_, err := Parse("f", []byte(c.in))
		if err == nil {
			t.Errorf("%.80s: no error", c.in)
			continue
		}
		qt.Check(t, qt.StringContains(err.Error(), c.want))
		qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
	}
}

// TestParseAllMistakes: one error tells them all.
func TestParseAllMistakes(t *testing.T) {
	_, err := Parse("f", []byte(`{"uuid":1,"nme_label":"x","attributes":{"a":"","bb":2},"endpoints":["x","bugtool","gopher://y"],"components":["nope"],"enabled":3}`))
	var ms Mistakes
	qt.Assert(t, qt.IsTrue(errors.As(err, &ms)))
	qt.Check(t, qt.HasLen(ms, 8))
	qt.Check(t, qt.HasLen(strings.Split(err.Error(), "\n"), 8))
	for _, m := range ms {
		qt.Check(t, qt.Equals(m.File, "f"))
	}
	var m *Mistake
	qt.Assert(t, qt.IsTrue(errors.As(err, &m)))
}

func TestValidateLimits(t *testing.T) {
	o := Observer{Attributes: map[string]string{strings.Repeat("k", 255): strings.Repeat("v", 4095), "k0": "", "9.": "x"}}
	err := o.Validate()
	qt.Assert(t, qt.ErrorMatches(err, `attributes: INVALID_VALUE attributes "9.:x": .*`))
	delete(o.Attributes, "9.")
	qt.Assert(t, qt.IsNil(o.Validate()))
	qt.Check(t, qt.IsNotNil(Observer{Attributes: map[string]string{strings.Repeat("k", 256): ""}}.Validate()))
	qt.Check(t, qt.ErrorMatches(Observer{Attributes: map[string]string{"kk": strings.Repeat("v", 4096)}}.Validate(), `.*the value of "kk" is 4096 bytes, at most 4095 are allowed; shorten it`))
	qt.Check(t, qt.IsNil(Observer{Hosts: []string{"OpaqueRef:1"}}.Validate()))
}

func TestManyEndpoints(t *testing.T) {
	o := Observer{}
	for i := range 100 {
		o.Endpoints = append(o.Endpoints, fmt.Sprintf("http://h%d", i), "bugtool")
	}
	qt.Check(t, qt.HasLen(o.endpoints(Steering{}), maxEndpoints))
	qt.Check(t, qt.DeepEquals(o.Warnings(), []string{"endpoints: 200, of which the first 32 are used"}))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"uuid":"` + uuidA + `","name_label":"n","hosts":[],"attributes":{"aa":"b"},"endpoints":["http://a"],"components":["xapi"],"enabled":true}`))
	f.Add([]byte(`{"attributes":{"aa":"b","aa":1}} x`))
	f.Add([]byte(`{"endpoints":["http://[::1"],"hosts":null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := Parse("f.json", data)
		if err != nil {
			var ms Mistakes
			if !errors.As(err, &ms) || len(ms) == 0 || !strings.HasPrefix(err.Error(), "f.json: ") {
				t.Fatalf("%v", err)
			}
			return
		}
		if err := o.Validate(); err != nil {
			t.Fatalf("accepted, but %v", err)
		}
		out, err := json.Marshal(struct {
			Observer
			Hosts      []string          `json:"hosts"`
			Attributes map[string]string `json:"attributes"`
			Endpoints  []string          `json:"endpoints"`
			Components []string          `json:"components"`
		}{o, append([]string{}, o.Hosts...), notNil(o.Attributes), append([]string{}, o.Endpoints...), append([]string{}, o.Components...)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("f.json", out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		_ = o.Tags(thisHost)
	})
}

func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
