package wire

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func xmlReplyOf(members string) string {
	return `<?xml version="1.0"?><methodResponse><params><param><value><struct>` + members + `</struct></value></param></params></methodResponse>`
}

const (
	xmlSuccess = `<member><name>Status</name><value>Success</value></member>`
	xmlFailure = `<member><name>Status</name><value>Failure</value></member>`
)

func TestReply(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value>OpaqueRef:b7ac34fc-0662-2faa-40ad-d5aa29523192</value></member>`),
			`xml ok "OpaqueRef:b7ac34fc-0662-2faa-40ad-d5aa29523192" R:b7ac34fc0662`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value>OpaqueRef:b7ac34fc-0662-****-****-************</value></member>`),
			`xml ok "OpaqueRef:b7ac34fc-0662-****-****-************" R:b7ac34fc0662`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value>Running</value></member>`), `xml ok "Running"`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value></value></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value>12</value></member>`), `xml ok "12"`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value> <string>12</string></value></member>`), `xml ok "12"`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value><i8>12</i8></value></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><><value>12</value></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value><boolean>1</boolean></value></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value><array><data><value>12</value></data></array></value></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value/></member>`), `xml ok`},
		{xmlReplyOf(xmlSuccess + `<member><name>Value</name><value><array><data></data></array></value></member>`), `xml ok`},
		{xmlReplyOf(xmlFailure + `<member><name>ErrorDescription</name><value><array><data><value>VM_BAD_POWER_STATE</value><value>OpaqueRef:x</value></data></array></value></member>`), `xml failed "VM_BAD_POWER_STATE"`},
		{xmlReplyOf(`<member><name>ErrorDescription</name><value><array><data><value><string>SESSION_INVALID</string></value></data></array></value></member>` + xmlFailure), `xml failed "SESSION_INVALID"`},
		{xmlReplyOf(" <member> <name>Status</name> <value> <string>Failure</string></value></member>\n<member>\n<name>ErrorDescription</name>\n<value>\n<array>\n<data>\n<value><string>A&amp;B</string></value>\n</data></array></value></member>"), `xml failed "A&B"`},
		{`<?xml version="1.0"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><int>1</int></value></member><member><name>faultString</name><value><string>unknown method</string></value></member></struct></value></fault></methodResponse>`, `xml failed "unknown method"`},
		{`<html><body>403</body></html>`, `xml unknown`},

		{`{"jsonrpc":"2.0","result":"OpaqueRef:9d9ebd58-3c64-bed7-517d-884bc6616e63","id":1}`, `json ok "OpaqueRef:9d9ebd58-3c64-bed7-517d-884bc6616e63" R:9d9ebd583c64`},
		{`{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nonsense"]},"id":999}`, `json failed "HANDLE_INVALID"`},
		{`{"jsonrpc":"2.0","error":{"data":{"message":"no"},"message":"SESSION_INVALID","code":1},"id":3}`, `json failed "SESSION_INVALID"`},
		{`{"jsonrpc":"2.0","error":{"code":-32601},"id":3}`, `json failed`},
		{`{"result":null,"error":["SESSION_INVALID","OpaqueRef:x"],"id":3}`, `json failed "SESSION_INVALID"`},
		{`{"result":null,"error":["Does_not_exist",["VM","91b9"]],"id":0}`, `json failed "Does_not_exist"`},
		{`{"error":"oops","result":null,"id":0}`, `json failed "oops"`},
		{`{"error":[["x"]],"id":0}`, `json failed "x"`},
		{`{"error":[],"id":0}`, `json failed`},
		{`{"result":"51","error":null,"id":0}`, `json ok "51"`},
		{`{"error":null,"result":"51","id":0}`, `json ok "51"`},
		{`{"result":null,"error":null,"id":0}`, `json ok`},
		{`{"jsonrpc":"2.0","result":null,"id":0}`, `json ok`},
		{`{"result":null,"id":0,`, `json unknown`},
		{`{"result":false,"error":null,"id":0}`, `json ok`},
		{`{"result":[[],[["Task","6"]],30],"error":null,"id":0}`, `json ok`},
		{`{"result":{"cancellable":true,"error":["no"],"state":["Failed",["x"]]},"error":null,"id":0}`, `json ok`},
		{`{"result":{"Status":"Failure","ErrorDescription":["HOST_IS_SLAVE","10.0.0.1"]},"error":null,"id":1}`, `json failed "HOST_IS_SLAVE"`},
		{`{"result":{"Status":"Success","Value":"x"},"error":null,"id":1}`, `json ok`},
		{`[{"result":"a","id":1},{"error":"b","id":2}]`, `json ok "a"`},
		{`{"error":"` + strings.Repeat("x", 500) + `\u0000"}`, `json failed "` + strings.Repeat("x", maxCode) + `"`},
		{`{"error":"a\nb\u00ff"}`, `json failed "a?b??"`},
		{"", "? unknown"},
		{"XenSource thin CLI protocol", "? unknown"},
	} {
		var d Decoder
		r := d.Reply([]byte(test.in))
		qt.Check(t, qt.Equals(showReply(&r), test.want), qt.Commentf("%s", test.in))
		// A prefix never says the opposite, nor another value.
		for n := range test.in {
			cut := d.Reply([]byte(test.in[:n]))
			whole := wholeReply(test.in)
			if cut.Status != Unknown && whole.Status != Unknown {
				qt.Assert(t, qt.Equals(cut.Status, whole.Status), qt.Commentf("%s", test.in[:n]))
				qt.Assert(t, qt.IsTrue(strings.HasPrefix(string(whole.Value), string(cut.Value))), qt.Commentf("%s", test.in[:n]))
				qt.Assert(t, qt.IsTrue(cut.Code == nil || string(cut.Code) == string(whole.Code)), qt.Commentf("%s", test.in[:n]))
			}
		}
	}
}

func wholeReply(in string) Reply {
	var d Decoder
	return d.Reply([]byte(in))
}

func showReply(r *Reply) string {
	s := [...]string{"?", "xml", "json"}[r.Protocol] + [...]string{" unknown", " ok", " failed"}[r.Status]
	if len(r.Code) > 0 {
		s += fmt.Sprintf(" %q", r.Code)
	}
	if len(r.Value) > 0 {
		s += fmt.Sprintf(" %q", r.Value)
	}
	if !r.Task.IsZero() {
		s += " " + r.Task.String()
	}
	return s
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(xmlReplyOf(xmlFailure + `<member><name>ErrorDescription</name><value><array><data><value>A&amp;B</value>`)))
	f.Add([]byte(`{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM"]},"id":999}`))
	f.Add([]byte(`{"result":{"Status":"Failure","ErrorDescription":["HOST_IS_SLAVE"]}}`))
	f.Add([]byte(`<methodResponse><fault><value>`))
	var d Decoder
	f.Fuzz(func(t *testing.T, b []byte) {
		r := d.Reply(b)
		if len(r.Code) > maxCode || r.Code != nil && r.Status != Failed || r.Value != nil && r.Status != Succeeded {
			t.Fatalf("%q: %s", b, showReply(&r))
		}
	})
}

func BenchmarkReply(b *testing.B) {
	body := []byte(xmlReplyOf(xmlSuccess + `<member><name>Value</name><value>OpaqueRef:b7ac34fc-0662-2faa-40ad-d5aa29523192</value></member>`))
	var d Decoder
	b.ReportAllocs()
	for b.Loop() {
		d.Reply(body)
	}
}
