package wire

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// Bodies as clients write them; session references are masked as package
// redact does.
const (
	pythonCall = "<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.start_on</methodName>\n<params>\n<param>\n<value><string>OpaqueRef:********-****-****-****-************</string></value>\n</param>\n<param>\n<value><boolean>0</boolean></value>\n</param>\n</params>\n</methodCall>\n"
	jsonCall   = `{"jsonrpc": "2.0", "id": 2, "method": "VM.get_all", "params": ["OpaqueRef:********-****-****-****-************"]}`
	startCall  = `{"method":"VM.start","params":[{"paused":false,"id":"91b928e6-5e4c-9f1a-6147-fb162417c0e0","debug_info":"VM.start_on R:07432559b308\n{\"traceparent\":\"00-ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726-01\",\"baggage\":[[\"span.depth\",\"9\"]]}"}],"id":80}`
)

func fixture(t testing.TB, name string) []byte {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	qt.Assert(t, qt.IsNil(err))
	return b
}

func TestCall(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{pythonCall, "xml VM.start_on"},
		{"<methodCall><methodName>session.login_with_password</methodName><params/></methodCall>", "xml session.login_with_password"},
		{"<?xml version=\"1.0\"?><!DOCTYPE x><!-- <methodName>no</methodName> -->\r\n <methodCall ><!-- y --> <methodName>\n Async.VM.start \n</methodName>", "xml async Async.VM.start"},
		{"<methodCall><methodName>VM.a&amp;b&#46;c&#x2e;d&lt;&gt;&quot;&apos;&nope;&;</methodName>", "xml VM.a&b.c.d<>\"'&nope;&;"},
		{"<methodCall><methodName>VM\x00.\xffstart</methodName>", "xml VM?.?start"},
		{"<methodCall><methodName>InternalAsync.VM.migrate_send</methodName>", "xml internal InternalAsync.VM.migrate_send"},
		{"<methodCall><methodName>system.isAlive:5f3c8e7e-6f8a-4e0e-9d0f-0a9b1c2d3e4f</methodName>", "xml probe system.isAlive"},
		{"<methodCall><methodName>unknown-message-5f3c8e7e</methodName>", "xml probe unknown-message"},
		{"<methodCall><methodName>system.listMethods</methodName>", "xml probe system.listMethods"},
		{"<methodCall><params><param><methodName>no</methodName>", "xml none"},
		{"<html><methodName>no</methodName></html>", "xml none"},
		{"<methodCall><methodName></methodName>", "xml none"},

		{jsonCall, "json VM.get_all"},
		{startCall, "json VM.start"},
		{`{"id":0,"jsonrpc":"2.0","params":{"method":"no"},"x":[{"method":"no"}],"s":"{\"method\":\"no\"}","method":"event.from"}`, "json event.from"},
		{`{"method":{"method":"no"},"params":[]}`, "json none"},
		{`{"meth\u006fd":"VM\u002Estart"}`, "json VM.start"},
		{`{"method":"VM\/start\n"}`, "json VM/start"},
		{`  [ {"method":"VM.start","id":1}, {"method":"VM.stop","id":2} ]`, "json batch VM.start"},
		{`[]`, "json batch none"},
		{`{"method":"Async.VM.start"}`, "json async Async.VM.start"},
		{`{"method":"Async."}`, "json Async."},
		{`{"method":"VM_start"}`, "json VM.start"},
		{`{"method":"Async.VM_guest_metrics_get_all"}`, "json async Async.VM_guest_metrics.get_all"},
		{`{"method":"VM_guest_metrics.get_all"}`, "json VM_guest_metrics.get_all"},
		{`{"method":"pool_update_get_all"}`, "json pool_update.get_all"},
		{`{"method":"list"}`, "json list"},
		{`{"method":"_x"}`, "json _x"},
		{`{"method":"event_from"}`, "json event.from"},
		{`{"method":"` + strings.Repeat("x", 500) + `"}`, "json " + strings.Repeat("x", maxMethod)},
		{`{"params":[],"id":1}`, "json none"},
		{"", "? cut"},
		{" \r\n", "? cut"},
		{"vm-list\nparams=all\n", "? none"},
		{"\x00\x01", "? none"},
	} {
		var d Decoder
		c := d.Call([]byte(test.in))
		qt.Check(t, qt.Equals(showCall(&c), test.want), qt.Commentf("%s", test.in))
	}
}

func showCall(c *Call) string {
	s := [...]string{"?", "xml", "json"}[c.Protocol]
	if c.Batch {
		s += " batch"
	}
	if c.Probe {
		s += " probe"
	}
	s += [...]string{"", " async", " internal"}[c.Prefix]
	switch {
	case len(c.Method) > 0:
		s += " " + string(c.Method)
	case c.Cut:
		s += " cut"
	default:
		s += " none"
	}
	return s
}

// Every prefix of a call has its method, or says that it is cut.
func TestCallCut(t *testing.T) {
	var d Decoder
	for _, in := range []string{pythonCall, jsonCall, startCall, `{"id":0,"params":["{\"method\":\"no\"}",{"method":"no"}],"method":"VM.get_all"}`, string(fixture(t, "call-import.json"))} {
		whole := d.Call([]byte(in))
		want := string(whole.Method)
		for n := range in {
			c := d.Call([]byte(in[:n]))
			if c.Method != nil {
				qt.Assert(t, qt.Equals(string(c.Method), want), qt.Commentf("%s", in[:n]))
			}
			qt.Assert(t, qt.Equals(c.Cut, c.Method == nil), qt.Commentf("%s", in[:n]))
		}
	}
}

func TestCallsObjects(t *testing.T) {
	const sr, vdi = "f0e1d2c3-0000-4000-8000-00000000aaaa", "01234567-89ab-4cde-8f01-23456789abcd"
	var d Decoder
	c := d.SwitchCall([]byte(`{"method":"VDI.attach2","params":[{"vdi":"`+vdi+`","sr":"`+sr+`","dp":"vbd/0/xvda","dbg":"x"}],"id":1}`), nil)
	qt.Check(t, qt.Equals(string(c.SR), sr))
	qt.Check(t, qt.Equals(string(c.VDI), vdi))
	qt.Check(t, qt.Equals(string(c.Object), ""))
	c = d.SwitchCall([]byte(`{"method":"SR.scan","params":[{"sr":"OpaqueRef:`+sr+`","vdi":7,"x":{"sr":"`+sr+`"}}]}`), nil)
	qt.Check(t, qt.Equals(string(c.SR)+string(c.VDI), ""))
}

func TestSwitchCall(t *testing.T) {
	const (
		vm       = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"
		start    = `tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726 span.depth=9`
		imported = `tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489 span.depth=10`
	)
	for _, test := range []struct{ name, in, method, object, info string }{
		{"VM.start", startCall, "VM.start", vm, start},
		{"VM.import_metadata", string(fixture(t, "call-import.json")), "VM.import_metadata", "", imported},
		{"dbg", `{"method":"VDI.attach3","params":[{"vm":"` + vm + `","dbg":"VM.start R:8ae06e1ea3d1"}],"id":1}`, "VDI.attach3", vm, `tag="VM.start R:8ae06e1ea3d1" label="VM.start" R:8ae06e1ea3d1`},
		{"VBD", `{"method":"VBD.plug","params":[{"id":["` + vm + `","xvda"],"debug_info":"x D:8ae06e1ea3d1"}],"id":1}`, "VBD.plug", vm, `tag="x D:8ae06e1ea3d1" label="x" D:8ae06e1ea3d1`},
		{"positional", `{"method":"Bridge.get_all","params":["Async.VM.start R:8ae06e1ea3d1",[]],"id":1}`, "Bridge.get_all", "", `tag="Async.VM.start R:8ae06e1ea3d1" label="Async.VM.start" R:8ae06e1ea3d1`},
		{"params first", `{"params":[{"dbg":"x D:8ae06e1ea3d1"},{"dbg":"no"}],"id":1,"method":"Task.stat"}`, "Task.stat", "", `tag="x D:8ae06e1ea3d1" label="x" D:8ae06e1ea3d1`},
		{"only the first parameter, only its members", `{"method":"a.b","params":[{"x":{"dbg":"no"}},{"dbg":"no"}]}`, "a.b", "", ``},
		{"a string that looks like it", `{"method":"a.b","params":[{"x":",\"dbg\":\"no\"}","dbg":"yes"}]}`, "a.b", "", `tag="yes" label="yes"`},
		{"no parameters", `{"method":"list","params":[],"id":1}`, "list", "", ``},
		{"a name with _", `{"method":"reserve_memory_range","params":["x R:8ae06e1ea3d1","1",0,0],"id":8}`, "reserve_memory_range", "", `tag="x R:8ae06e1ea3d1" label="x" R:8ae06e1ea3d1`},
		{"positional behind named", `{"method":"Network.Interface.get_mac","params":[{"name":"eth0"},"Async.VM.start R:8ae06e1ea3d1"],"id":103}`, "Network.Interface.get_mac", "", `tag="Async.VM.start R:8ae06e1ea3d1" label="Async.VM.start" R:8ae06e1ea3d1`},
		{"xml", `<methodCall><methodName>VM.start</methodName><params><param><value><struct><member><name>id</name><value>x</value></member><member><name>debug_info</name><value><string>a &lt;b&gt; R:8ae06e1ea3d1` + "\n" + `{"traceparent":"00-ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726-01","baggage":null}</string></value></member></struct></value></param></params></methodCall>`,
			"VM.start", "", `tag="a <b> R:8ae06e1ea3d1" label="a <b>" R:8ae06e1ea3d1 ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726`},
		{"xml positional behind named", `<methodCall><methodName>Network.Interface.get_mac</methodName><params><param><value><struct><member><name>name</name><value>eth0</value></member></struct></value></param><param><value>x R:8ae06e1ea3d1</value></param></params></methodCall>`, "Network.Interface.get_mac", "", `tag="x R:8ae06e1ea3d1" label="x" R:8ae06e1ea3d1`},
		{"xml positional", `<methodCall><methodName>Bridge.get_all</methodName><params><param><value>x R:8ae06e1ea3d1</value></param></params></methodCall>`, "Bridge.get_all", "", `tag="x R:8ae06e1ea3d1" label="x" R:8ae06e1ea3d1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d Decoder
			c := d.SwitchCall([]byte(test.in), nil)
			qt.Check(t, qt.Equals(string(c.Method), test.method))
			qt.Check(t, qt.Equals(string(c.Object), test.object))
			qt.Check(t, qt.Equals(showInfo(&c.DebugInfo), test.info))
			// Cut anywhere, it says the same or nothing.
			for n := range test.in {
				c := d.SwitchCall([]byte(test.in[:n]), nil)
				if c.Method != nil {
					qt.Assert(t, qt.Equals(string(c.Method), test.method), qt.Commentf("%s", test.in[:n]))
				}
				if c.DebugInfo.Tag != nil {
					qt.Assert(t, qt.Equals(showInfo(&c.DebugInfo), test.info), qt.Commentf("%s", test.in[:n]))
				}
			}
			// With the middle cut out, the tail says it, if it is all there.
			step := 1 + len(test.in)/150
			for head := 60; head < len(test.in); head += 11 * step {
				for tail := head; tail < len(test.in); tail += step {
					c := d.SwitchCall([]byte(test.in[:head]), []byte(test.in[tail:]))
					if c.DebugInfo.Tag != nil {
						qt.Assert(t, qt.Equals(showInfo(&c.DebugInfo), test.info), qt.Commentf("%s … %s", test.in[:head], test.in[tail:]))
					}
				}
			}
		})
	}
	t.Run("from the tail", func(t *testing.T) {
		var d Decoder
		in := fixture(t, "call-import.json")
		c := d.SwitchCall(in[:512], in[len(in)-512:])
		qt.Check(t, qt.Equals(string(c.Method), "VM.import_metadata"))
		qt.Check(t, qt.Equals(showInfo(&c.DebugInfo), imported))
		for _, tail := range []string{
			`…\",\"debug_info\":\"no\"}","name":"x"}],"id":1}`, // in a string
			`…","name":"debug_info"}],"id":1}`,
			`…,"debug_info":["no"]}],"id":1}`,
			`debug_info":"no"}],"id":1}`, // what comes before may be a backslash
			`"debug_info":"no"}],"id":1}`,
			`…,"debug_info":"no`,
			`…,"debug_info":`,
			`…,"debug_info`,
			`…,"xdbg":"no"}`,
		} {
			c := d.SwitchCall(in[:512], []byte(tail))
			qt.Check(t, qt.Equals(showInfo(&c.DebugInfo), ""), qt.Commentf("%s", tail))
		}
		c = d.SwitchCall(in[:512], []byte(`…, "dbg" : "x R:8ae06e1ea3d1"}], "id": 1}`))
		qt.Check(t, qt.Equals(c.DebugInfo.Task.String(), "R:8ae06e1ea3d1"))
	})
}

func showInfo(di *DebugInfo) string {
	if di.Tag == nil {
		return ""
	}
	s := fmt.Sprintf("tag=%q label=%q", di.Tag, di.Label)
	if !di.Task.IsZero() {
		s += " " + di.Task.String()
	}
	if di.Context.IsValid() {
		s += fmt.Sprintf(" %v-%v", di.Context.TraceID, di.Context.SpanID)
	}
	if di.Baggage != nil {
		s += " " + string(di.Baggage)
	}
	return s
}

func TestDebugInfo(t *testing.T) {
	const (
		context = "00-ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726-01"
		ids     = " ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726"
		tag     = "Async.VM.start R:8ae06e1ea3d1"
		read    = `tag="Async.VM.start R:8ae06e1ea3d1" label="Async.VM.start" R:8ae06e1ea3d1`
	)
	for _, test := range []struct{ in, want string }{
		{tag, read},
		{tag + "\n" + `{"traceparent":"` + context + `","baggage":[["span.depth","6"]]}`, read + ids + " span.depth=6"},
		{tag + "\n" + `{"traceparent":"` + context + `","baggage":null}`, read + ids},
		{tag + "\n" + `{"traceparent":null,"baggage":[["a","b"],["c","d=\"e"]]}`, read + ` a=b;c=d="e`},
		{tag + "\n" + `{ "baggage" : [ [ "a" , "b" ] ] , "x" : [ {} ], "traceparent" : "` + context + `" }`, read + ids + " a=b"},
		{tag + "\n" + `{"traceparent":"` + context + `","baggage":[[],["a"],["b",1]]}`, read + ids},
		{tag + "\n" + `{"traceparent":"nonsense"}`, read},
		{tag + "\n" + `{"traceparent":"` + context, read}, // cut
		{tag + "\n" + `{"traceparent":"` + context + `","bagg`, read + ids},
		{tag + "\n" + context, read + ids}, // before 25.8
		{tag + "\n", read},
		{tag + "\nnonsense", read},
		{tag + "\n" + context + "\n", fmt.Sprintf("tag=%q label=%q", tag+"\n"+context+"\n", tag+"\n"+context+"\n")},
		{"", `tag="" label=""`},
		{"R:8ae06e1ea3d1", `tag="R:8ae06e1ea3d1" label="" R:8ae06e1ea3d1`},
		{"no id", `tag="no id" label="no id"`},
		{"xR:8ae06e1ea3d1", `tag="xR:8ae06e1ea3d1" label="xR:8ae06e1ea3d1"`},
		{"x R:8ae06e1ea3d", `tag="x R:8ae06e1ea3d" label="x R:8ae06e1ea3d"`},
		{"x X:8ae06e1ea3d1", `tag="x X:8ae06e1ea3d1" label="x X:8ae06e1ea3d1"`},
		{"org.xen.xapi.xenops.classic events D:8d0890bd8862", `tag="org.xen.xapi.xenops.classic events D:8d0890bd8862" label="org.xen.xapi.xenops.classic events" D:8d0890bd8862`},
		{"z O:8d0890bd8862", `tag="z O:8d0890bd8862" label="z" O:8d0890bd8862`},
	} {
		var d Decoder
		di := d.DebugInfo([]byte(test.in))
		qt.Check(t, qt.Equals(showInfo(&di), test.want), qt.Commentf("%q", test.in))
		// The log shows the same with \x0A and doubled backslashes.
		logged := strings.ReplaceAll(strings.ReplaceAll(test.in, `\`, `\\`), "\n", `\x0A`)
		di = d.LogTag([]byte(logged))
		qt.Check(t, qt.Equals(showInfo(&di), test.want), qt.Commentf("%q", logged))
	}
}

func TestTaskRef(t *testing.T) {
	for in, want := range map[string]string{
		"OpaqueRef:8ae06e1e-a3d1-1111-2222-333333333333": "R:8ae06e1ea3d1",
		"OpaqueRef:8ae06e1e-a3d1-****-****-************": "R:8ae06e1ea3d1",
		"OpaqueRef:8ae06e1e-a3d1":                        "R:8ae06e1ea3d1",
		"DummyRef:|8ae06e1e-a3d1-1111-2222-333|VM.start": "D:8ae06e1ea3d1",
		"OpaqueRef:8ae06e1e-a3d":                         "",
		"OpaqueRef:********-****-****-****-************": "",
		"OpaqueRef:NULL":                                 "",
		"8ae06e1e-a3d1-1111-2222-333333333333":           "",
		"":                                               "",
	} {
		qt.Check(t, qt.Equals(ParseTaskRef([]byte(in)).String(), want), qt.Commentf("%s", in))
	}
	qt.Check(t, qt.IsTrue(ParseTaskID([]byte("R:8ae06e1ea3d1")).Real()))
	qt.Check(t, qt.IsFalse(ParseTaskID([]byte("D:8ae06e1ea3d1")).Real()))
	qt.Check(t, qt.IsTrue(ParseTaskID([]byte("R:8ae06e1ea3dx")).IsZero()))
}

func FuzzCall(f *testing.F) {
	for _, s := range []string{pythonCall, jsonCall, startCall, `[{"method":"x_y"}]`, "<methodCall><methodName>a&#46;b</methodName><params><param><value>x R:8ae06e1ea3d1</value>"} {
		f.Add([]byte(s), []byte(`,"debug_info":"a\nb"}],"id":1}`))
	}
	f.Add(fixture(f, "call-import.json"), []byte(nil))
	var d Decoder
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		c := d.Call(head)
		method := string(c.Method)
		if len(method) > maxMethod || c.Cut && method != "" {
			t.Fatalf("%q %v", method, c.Cut)
		}
		c = d.SwitchCall(head, tail)
		if same := strings.NewReplacer("_", "."); same.Replace(string(c.Method)) != same.Replace(method) {
			t.Fatalf("%q, then %q", method, c.Method)
		}
		d.DebugInfo(head)
		d.LogTag(head)
		if cap(d.buf) > 8*(len(head)+len(tail)+256)+1<<16 {
			t.Fatalf("keeps %d bytes for %d", cap(d.buf), len(head)+len(tail))
		}
	})
}

func TestCallNoAllocation(t *testing.T) {
	var d Decoder
	xml, start, imported := []byte(pythonCall), []byte(startCall), fixture(t, "call-import.json")
	tag := []byte(`VM.start_on R:07432559b308\x0A{"traceparent":"00-ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489-01","baggage":[["span.depth","10"]]}`)
	run := func() {
		d.Call(xml)
		d.Call(start)
		d.SwitchCall(start, nil)
		d.SwitchCall(imported[:1000], imported[1000:])
		d.LogTag(tag)
	}
	run()
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, run), 0))
}

func BenchmarkCall(b *testing.B) {
	for _, bench := range []struct {
		name string
		body []byte
	}{{"xml", []byte(pythonCall)}, {"json", []byte(jsonCall)}} {
		b.Run(bench.name, func(b *testing.B) {
			var d Decoder
			b.ReportAllocs()
			for b.Loop() {
				d.Call(bench.body)
			}
		})
	}
	imported := fixture(b, "call-import.json")
	b.Run("switch", func(b *testing.B) {
		var d Decoder
		b.SetBytes(int64(len(imported)))
		b.ReportAllocs()
		for b.Loop() {
			d.SwitchCall(imported, nil)
		}
	})
}
