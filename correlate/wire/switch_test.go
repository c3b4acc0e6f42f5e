package wire

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestSwitchRequest(t *testing.T) {
	for in, want := range map[string]string{
		"/login/xapi:7661":                                   "login xapi:7661",
		"/login/xapi%3A7661":                                 "login xapi:7661",
		"/persistent/org.xen.xapi.xenops.classic":            "persistent org.xen.xapi.xenops.classic",
		"/transient/xapi:7661":                               "transient xapi:7661",
		"/request/org.xen.xapi.xenops.classic/xapi:7661":     "request org.xen.xapi.xenops.classic ← xapi:7661",
		"/response/xapi:7661/org.xen.xapi.xenops.classic/64": "response org.xen.xapi.xenops.classic#64 ← xapi:7661",
		"/transfer":                  "transfer ",
		"/ack/xapi:7661/76":          "ack xapi:7661#76",
		"/ack/a%2fb%zz%4/0":          "ack a/b%zz%4#0",
		"/ack/q/9223372036854775807": "ack q#9223372036854775807",
		"/ack/q/9223372036854775808": "other ",
		"/ack/q/-1":                  "other ",
		"/ack/q/":                    "other ",
		"/ack/q":                     "other ",
		"/request/q":                 "other ",
		"/request/q/r/s":             "other ",
		"/response/r/q/1/x":          "other ",
		"/transfer/":                 "other ",
		"/list/org.xen":              "other ",
		"/list/alive/org.xen":        "other ",
		"/destroy/q":                 "other ",
		"/":                          "other ",
		"":                           "other ",
		"login/x":                    "other ",
		"/other":                     "other ",
		"/a/b/c/d/e/f":               "other ",
	} {
		var d Decoder
		r := d.SwitchRequest([]byte(in))
		got := r.Action.String() + " " + string(r.Queue)
		if r.Action == Ack || r.Action == Response {
			got += fmt.Sprintf("#%d", r.ID)
		}
		if r.ReplyQueue != nil {
			got += " ← " + string(r.ReplyQueue)
		}
		qt.Check(t, qt.Equals(got, want), qt.Commentf("%s", in))
	}
}

func TestSwitchSent(t *testing.T) {
	for in, want := range map[string]string{
		`[["org.xen.xapi.xenops.classic",1234]]`: "org.xen.xapi.xenops.classic#1234",
		` [ [ "a\"b" , "7" ] ] `:                 `a"b#7`,
		`[]`:                                     "",
		`[["q",-1]]`:                             "",
		`[["q"]]`:                                "",
		`[["q",1,2]]`:                            "",
		`[[1,2]]`:                                "",
		``:                                       "",
	} {
		var d Decoder
		id, ok := d.SwitchSent([]byte(in))
		qt.Check(t, qt.Equals(showID(id), want), qt.Commentf("%s", in))
		qt.Check(t, qt.Equals(ok, want != ""), qt.Commentf("%s", in))
		for n := range strings.TrimRight(in, " ]") {
			_, ok := d.SwitchSent([]byte(in[:n]))
			qt.Check(t, qt.IsFalse(ok), qt.Commentf("%s", in[:n]))
		}
	}
}

func showID(id MessageID) string {
	if id.Queue == nil {
		return ""
	}
	return fmt.Sprintf("%s#%d", id.Queue, id.N)
}

func showMessage(m *SwitchMessage) string {
	s := fmt.Sprintf("%s %v", showID(m.ID), m.Kind)
	if m.Cut {
		s += " cut"
	}
	if m.ReplyQueue != nil {
		s += " ← " + string(m.ReplyQueue)
	}
	if m.Request.Queue != nil {
		s += " to " + showID(m.Request)
	}
	if m.Call.Method != nil {
		s += " " + showCall(&m.Call)
	}
	if m.Call.Object != nil {
		s += " " + string(m.Call.Object)
	}
	if m.Call.DebugInfo.Tag != nil {
		s += " " + showInfo(&m.Call.DebugInfo)
	}
	if m.Reply.Protocol != NoProtocol {
		s += " " + showReply(&m.Reply)
	}
	return s
}

func showMessages(d *Decoder, from uint64, head, tail []byte) (shown []string, all bool) {
	all = d.SwitchMessagesAfter(from, head, tail, func(m *SwitchMessage) { shown = append(shown, showMessage(m)) })
	return shown, all
}

const unknownFrom = 1<<64 - 1

func TestSwitchMessages(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"request", `{"messages":[[["org.xen.xapi.xenops.classic",66],{"payload":"{\"method\":\"VM.start\",\"params\":[{\"paused\":false,\"id\":\"91b928e6-5e4c-9f1a-6147-fb162417c0e0\",\"debug_info\":\"VM.start_on R:07432559b308\\n{\\\"traceparent\\\":\\\"00-ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726-01\\\",\\\"baggage\\\":[[\\\"span.depth\\\",\\\"9\\\"]]}\"}],\"id\":80}","kind":["Request","xapi:7661"]}]],"next":"66"}`,
			[]string{`org.xen.xapi.xenops.classic#66 request ← xapi:7661 json VM.start 91b928e6-5e4c-9f1a-6147-fb162417c0e0 tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-2b01d31413295726 span.depth=9`}},
		{"response", `{"messages":[[["xapi:7661",78],{"payload":"{\"result\":\"6\",\"error\":null,\"id\":0}","kind":["Response",["org.xen.xapi.xenops.classic",66]]}]],"next":"78"}`,
			[]string{`xapi:7661#78 response to org.xen.xapi.xenops.classic#66 json ok "6"`}},
		{"two", string(fixture(t, "transfer-two.json")), []string{
			`org.xen.xapi.xenops.classic#93 request ← xapi:7661 json VM.exists 91b928e6-5e4c-9f1a-6147-fb162417c0e0 tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-d6357806ebdc98c5 span.depth=12`,
			`org.xen.xapi.xenops.classic#92 request ← xapi:7661 json UPDATES.get tag="org.xen.xapi.xenops.classic events D:8d0890bd8862" label="org.xen.xapi.xenops.classic events" D:8d0890bd8862 21e76105bc376963ff0fa496ce5bb363-7e2e1fd67f4862b9 span.depth=1`,
		}},
		{"VM.import_metadata", string(fixture(t, "transfer-import.json")), []string{
			`org.xen.xapi.xenops.classic#65 request ← xapi:7661 json VM.import_metadata tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489 span.depth=10`,
		}},
		{"VM.stat's answer", string(fixture(t, "transfer-vm-stat.json")), []string{`xapi:7661#102 response to org.xen.xapi.xenops.classic#88 json ok`}},
		{"none", `{"messages":[],"next":"66"}`, nil},
		{"kind first, blanks", `{ "next" : "1", "messages" : [ [ [ "q" , "1" ] , { "kind" : [ "Request" , "r" ] , "x" : {} , "payload" : "{\"method\": \"a.b\"}" } ] ] }`,
			[]string{`q#1 request ← r json a.b`}},
		{"xml", `{"messages":[[["q",1],{"payload":"<methodCall><methodName>a.b</methodName><params><param><value>x R:8ae06e1ea3d1</value>","kind":["Request","r"]}]]}`,
			[]string{`q#1 request ← r xml a.b tag="x R:8ae06e1ea3d1" label="x" R:8ae06e1ea3d1`}},
		{"failure", `{"messages":[[["r",1],{"payload":"{\"result\":null,\"error\":[\"Does_not_exist\",[\"VM\"]],\"id\":0}","kind":["Response",["q",2]]}]]}`,
			[]string{`r#1 response to q#2 json failed "Does_not_exist"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d Decoder
			in := []byte(test.in)
			got, all := showMessages(&d, unknownFrom, in, nil)
			qt.Check(t, qt.IsTrue(all))
			qt.Assert(t, qt.DeepEquals(got, test.want))
			// Cut anywhere: whole messages as they are, and at most one that
			// says that it is cut and is called for what it is.
			for n := range in {
				got, all := showMessages(&d, unknownFrom, in[:n:n], nil)
				qt.Assert(t, qt.IsTrue(!all || len(got) == len(test.want)), qt.Commentf("%s", in[:n]))
				qt.Assert(t, qt.IsTrue(len(got) <= len(test.want)))
				for i, m := range got {
					if m == test.want[i] {
						continue
					}
					qt.Assert(t, qt.Equals(i, len(got)-1), qt.Commentf("%s", in[:n]))
					qt.Assert(t, qt.IsTrue(strings.Contains(m, " cut")), qt.Commentf("%s: %s", in[:n], m))
					id, _, _ := strings.Cut(test.want[i], " ")
					qt.Assert(t, qt.IsTrue(strings.HasPrefix(m, id+" ")), qt.Commentf("%s: %s", in[:n], m))
				}
			}
		})
	}
}

// The end of a message stands in the tail only when there is one message.
func TestSwitchMessagesTail(t *testing.T) {
	var d Decoder
	in := fixture(t, "transfer-import.json") // message 65
	const info = `tag="VM.start_on R:07432559b308" label="VM.start_on" R:07432559b308 ab68d9f01d9f44369ce3e6cee8e98b98-73d887606c92e489 span.depth=10`
	head, tail := in[:512], in[len(in)-512:]

	got, all := showMessages(&d, 64, head, tail)
	qt.Check(t, qt.IsTrue(all))
	qt.Check(t, qt.DeepEquals(got, []string{`org.xen.xapi.xenops.classic#65 request cut ← xapi:7661 json VM.import_metadata ` + info}))
	for _, from := range []uint64{unknownFrom, 63, 0, 65} { // others may stand between
		got, all = showMessages(&d, from, head, tail)
		qt.Check(t, qt.IsFalse(all))
		qt.Check(t, qt.DeepEquals(got, []string{`org.xen.xapi.xenops.classic#65 request cut json VM.import_metadata`}))
	}

	// For any cut it says the truth or nothing.
	for h := 0; h < len(in); h += 37 {
		for tl := h; tl <= len(in); tl += 11 {
			got, _ := showMessages(&d, 64, in[:h], in[tl:])
			for _, m := range got {
				if _, said, ok := strings.Cut(m, "tag="); ok {
					qt.Assert(t, qt.Equals("tag="+said, info))
				}
			}
		}
	}

	// The second message is in the tail.
	two := fixture(t, "transfer-two.json")
	got, all = showMessages(&d, 91, two[:60], two[370:])
	qt.Check(t, qt.IsFalse(all))
	qt.Assert(t, qt.HasLen(got, 2))
	qt.Check(t, qt.Equals(got[0], `org.xen.xapi.xenops.classic#93 other cut`))
	qt.Check(t, qt.IsTrue(strings.HasPrefix(got[1], `org.xen.xapi.xenops.classic#92 request ← xapi:7661 json UPDATES.get tag=`)))

	// A response that is longer than the head.
	stat := fixture(t, "transfer-vm-stat.json")
	got, all = showMessages(&d, 101, stat[:512], stat[len(stat)-200:])
	qt.Check(t, qt.IsTrue(all))
	qt.Check(t, qt.DeepEquals(got, []string{`xapi:7661#102 response cut to org.xen.xapi.xenops.classic#88 json ok`}))
}

func TestTransferFrom(t *testing.T) {
	var d Decoder
	in := []byte(`{"from":"76","timeout":30.0,"queues":["xapi:7661"]}`)
	n, ok := d.TransferFrom(in)
	qt.Check(t, qt.IsTrue(ok && n == 76))
	_, ok = d.TransferFrom([]byte(`{"timeout":30.0,"queues":["from"]}`))
	qt.Check(t, qt.IsFalse(ok))
	for cut := range in {
		if n, ok := d.TransferFrom(in[:cut]); ok {
			qt.Check(t, qt.Equals(n, 76))
		}
	}
}

func FuzzSwitch(f *testing.F) {
	f.Add(fixture(f, "transfer-two.json"), []byte(`,"kind":["Request","r"]}]],"next":"93"}`), uint64(92))
	f.Add(fixture(f, "transfer-import.json")[:300], fixture(f, "transfer-import.json")[1700:], uint64(64))
	f.Add([]byte(`{"messages":[[["q",1],{"payload":"<methodCall>","kind":["Response",["q",2]]}]]}`), []byte(`,[["q",3],{`), uint64(0))
	f.Add([]byte(`[["q",1]]`), []byte(nil), uint64(0))
	f.Add([]byte(`/response/a%20b/q/1`), []byte(nil), uint64(0))
	var d Decoder
	f.Fuzz(func(t *testing.T, head, tail []byte, from uint64) {
		n := 0
		d.SwitchMessagesAfter(from, head, tail, func(m *SwitchMessage) {
			n++
			if m.Kind == Request && m.Call.Method == nil && !m.Cut && len(m.Call.DebugInfo.Tag) > len(head) {
				t.Fatal(showMessage(m))
			}
			_ = showMessage(m)
		})
		if n > len(head)+len(tail) {
			t.Fatalf("%d messages", n)
		}
		d.SwitchSent(head)
		d.SwitchRequest(head)
		d.TransferFrom(head)
	})
}

func TestSwitchNoAllocation(t *testing.T) {
	var d Decoder
	two, imported := fixture(t, "transfer-two.json"), fixture(t, "transfer-import.json")
	n := 0
	yield := func(m *SwitchMessage) { n += len(m.Call.Method) }
	path, sent := []byte("/response/xapi%3A7661/org.xen.xapi.xenops.classic/64"), []byte(`[["q",12]]`)
	run := func() {
		d.SwitchMessages(two, nil, yield)
		d.SwitchMessagesAfter(64, imported[:1000], imported[1100:], yield)
		d.SwitchRequest(path)
		d.SwitchSent(sent)
	}
	run()
	qt.Assert(t, qt.Equals(testing.AllocsPerRun(100, run), 0))
}

func BenchmarkSwitchMessages(b *testing.B) {
	for _, name := range []string{"transfer-two.json", "transfer-import.json"} {
		b.Run(name, func(b *testing.B) {
			in := fixture(b, name)
			var d Decoder
			yield := func(*SwitchMessage) {}
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				d.SwitchMessages(in, nil, yield)
			}
		})
	}
}
