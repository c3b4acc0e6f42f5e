package redact

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

// canary is a secret that must never be seen; it is of harmless bytes so that
// only its place can give it away.
const (
	canary    = "Canary7f3aPa55word"
	canaryRef = "OpaqueRef:9e25edb4-49f5-33d2-f640-7e383521a752"
	pool      = "1c5a0b7e-aaaa-4bbb-8ccc-123456789abc/2c5a0b7e-aaaa-4bbb-8ccc-123456789abc/3c5a0b7e-aaaa-4bbb-8ccc-123456789abc"
)

// leaks returns a substring of a secret, of 8 bytes or more, that is in b.
func leaks(b []byte, secrets ...string) string {
	for _, s := range secrets {
		s = strings.TrimPrefix(s, "OpaqueRef:")
		for i := 0; i+8 <= len(s); i++ {
			if bytes.Contains(b, []byte(s[i:i+8])) {
				return s[i : i+8]
			}
		}
	}
	return ""
}

// exchange is what goes over one connection: requests and replies in turn.
type exchange struct {
	r    *Redactor
	conn event.Conn
}

func newExchange() *exchange {
	return &exchange{r: New(0), conn: event.Conn{TGID: 1, FD: 7, Born: 1}}
}

// send passes text as pieces of one message, cut at the given places.
func (x *exchange) send(dir event.Dir, text string, cuts ...int) string {
	var out []byte
	begin, more := 0, event.Flags(0)
	for _, end := range append(cuts, len(text)) {
		ev := event.Event{Kind: event.KindData, Dir: dir, Conn: x.conn, Flags: more,
			Head: []byte(text[begin:end]), Bytes: uint64(end - begin)}
		x.r.Event(&ev)
		out = append(out, ev.Head...)
		begin, more = end, event.FlagMore
	}
	return string(out)
}

// sendCut passes text as one event with Head and Tail of the given lengths.
func (x *exchange) sendCut(dir event.Dir, text string, head, tail int) string {
	ev := event.Event{Kind: event.KindData, Dir: dir, Conn: x.conn, Flags: event.FlagCut,
		Head: []byte(text[:head]), Tail: []byte(text[len(text)-tail:]), Bytes: uint64(len(text))}
	x.r.Event(&ev)
	return string(ev.Head) + string(ev.Tail)
}

func post(path, headers, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n%s", path, headers, len(body), body)
}

func answer(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: text/xml\r\n\r\n%s", len(body), body)
}

func xmlCall(method string, params ...string) string {
	var b strings.Builder
	b.WriteString("<?xml version='1.0'?>\n<methodCall>\n<methodName>" + method + "</methodName>\n<params>\n")
	for _, p := range params {
		b.WriteString("<param>\n<value><string>" + p + "</string></value>\n</param>\n")
	}
	return b.String() + "</params>\n</methodCall>\n"
}

func xmlReply(value string) string {
	return `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value>` +
		value + `</value></member></struct></value></param></params></methodResponse>`
}

func xmlFailure(params ...string) string {
	return `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value><array><data><value>` +
		strings.Join(params, "</value><value>") + `</value></data></array></value></member></struct></value></param></params></methodResponse>`
}

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(b), `\u003c`, "<")
}

const traceparent = "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00"

const debugInfo = "Async.VM.start R:8ae06e1ea3d1\n{\"traceparent\":\"" + traceparent + "\",\"baggage\":[[\"span.depth\",\"6\"]]}"

// message is one request or reply with secrets in it and what must be left.
type message struct {
	name    string
	before  string // an earlier message of the other direction
	text    string
	secrets []string
	keep    []string
	wellXML bool
	well    bool // the body stays JSON
}

func switchCall(metadata string) string {
	return `{"method":"VM.import_metadata","params":[{"metadata":` + quoted(metadata) + `,"id":"91b928e6-5e4c-9f1a-6147-fb162417c0e0","debug_info":` + quoted(debugInfo) + `}],"id":79}`
}

func transfer(payload string) string {
	return `{"messages":[[["org.xen.xapi.xenops.classic",65],{"payload":` + quoted(payload) + `,"kind":["Request","xapi:7661"]}]],"next":"65"}`
}

var secrets = []string{canary, canaryRef, pool}

func messages() []message {
	metadata := `{"vm":{"name":"` + canary + `","xsdata":{"` + canary + `":"vm-data \"` + canary + `\" x","p\\":"` + canary + `"}},"password":"` + canary + `","dev":[1,"` + canary + `"]}`
	query := "session_id=" + canaryRef + "&task_id=OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555&pool_secret=" + pool + "&password=" + canary
	asyncCall := post("/", "", xmlCall("Async.VM.start", canaryRef))
	return []message{
		{
			name: "login xml", wellXML: true,
			text: post("/", "traceparent: "+traceparent+"\r\nCookie: pool_secret="+pool+"\r\nAuthorization: Basic "+canary+"\r\nuser-agent: Python-xmlrpc/3\r\nX-Other: "+canary+"\r\n",
				xmlCall("session.login_with_password", "root", canary, "1.0", "partner"+canary)),
			keep: []string{"POST / HTTP/1.1\r\n", "traceparent: " + traceparent + "\r\n", "Cookie: *", "Authorization: *", "user-agent: Python-xmlrpc/3\r\n", "<methodName>session.login_with_password</methodName>", "content-length: "},
		},
		{name: "login xml reply", before: post("/", "", xmlCall("session.login_with_password", "root", canary)), text: answer(xmlReply(canaryRef)), keep: []string{"HTTP/1.1 200 OK", "<value>Success</value>"}, wellXML: true},
		{name: "slave_login", text: post("/", "", xmlCall("session.slave_login", canaryRef, pool)), keep: []string{"session.slave_login"}, wellXML: true},
		{name: "change_password", text: post("/RPC2", "", xmlCall("session.change_password", canaryRef, canary, canary+"2")), keep: []string{"session.change_password"}, wellXML: true},
		{name: "login json", well: true,
			text: post("/jsonrpc", "", `{"jsonrpc": "2.0", "id": 1, "method": "session.login_with_password", "params": ["root", "`+canary+`", "1.0", "`+canary+`"]}`),
			keep: []string{`"method": "session.login_with_password"`, `"id": 1`}},
		{name: "login json, params first", well: true,
			text: post("/jsonrpc", "", `{"params":["root","`+canary+`",{"`+canary+`":"`+canary+`"}],"method":"session.login_with_password","id":"abc"}`),
			keep: []string{`"method":"session.login_with_password"`, `"id":"abc"`}},
		{name: "login json reply", before: post("/jsonrpc", "", `{"method":"session.login_with_password","params":[],"id":1}`), well: true,
			text: answer(`{"jsonrpc":"2.0","result":"` + canaryRef + `","id":1}`), keep: []string{`"result":"`, `"id":1`}},
		{name: "reply without request", well: true, text: answer(`{"jsonrpc":"2.0","result":"` + canaryRef + `","id":1}`), keep: []string{`"id":1`}},
		{name: "async reply xml", before: asyncCall, wellXML: true,
			text:    answer(xmlReply("OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555")),
			secrets: []string{"-1111-2222-333344445555"}, keep: []string{"<value>OpaqueRef:8ae06e1e-a3d1*"}},
		{name: "async reply json", before: post("/jsonrpc", "", `{"method":"InternalAsync.VM.start","params":["`+canaryRef+`"],"id":1}`), well: true,
			text:    answer(`{"jsonrpc":"2.0","result":"OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555","id":1}`),
			secrets: []string{"-1111-2222-333344445555"}, keep: []string{`"result":"OpaqueRef:8ae06e1e-a3d1*`}},
		{name: "record in reply", before: post("/", "", xmlCall("VM.get_record", canaryRef, canaryRef)), wellXML: true,
			text: answer(xmlReply(`<struct><member><name>` + canary + `</name><value>` + canary + `</value></member><member><name>Status</name><value>` + canary + `</value></member><member><name>ErrorDescription</name><value>` + canary + `</value></member></struct>`))},
		{name: "secret.get_value", before: post("/jsonrpc", "", `{"method":"secret.get_value","params":["x","y"],"id":1}`), well: true,
			text: answer(`{"jsonrpc":"2.0","result":"` + canary + `","id":1}`)},
		{name: "numeric secret", before: post("/jsonrpc", "", `{"method":"secret.get_value","params":["x","y"],"id":1}`), well: true,
			text: answer(`{"jsonrpc":"2.0","result":"8427519460","id":1}`), secrets: []string{"8427519460"}},
		{name: "failure xml", wellXML: true, before: asyncCall, text: answer(xmlFailure("HANDLE_INVALID", "session", canaryRef)), keep: []string{"<value>Failure</value>", "<value>HANDLE_INVALID</value>"}},
		{name: "failure json 2.0", well: true, text: answer(`{"jsonrpc":"2.0","error":{"code":1,"message":"SESSION_AUTHENTICATION_FAILED","data":["SESSION_AUTHENTICATION_FAILED","` + canary + `","` + canaryRef + `"]},"id":999}`),
			keep: []string{`"message":"SESSION_AUTHENTICATION_FAILED"`, `"data":["SESSION_AUTHENTICATION_FAILED"`, `"code":1`, `"id":999`}},
		{name: "failure json 1.0", well: true, text: answer(`{"result":null,"error":["SESSION_INVALID","` + canaryRef + `"],"id":3}`), keep: []string{`"error":["SESSION_INVALID"`}},
		{name: "import", text: "PUT /import?" + query + " HTTP/1.1\r\nhost: h\r\ntask-id: OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555\r\ncookie: session_id=" + canaryRef + "\r\ncontent-length: 300\r\n\r\nova.xml " + canary + ` {"debug_info":"` + canary + `"}`,
			secrets: []string{canary, canaryRef, pool, "-1111-2222-333344445555"},
			keep:    []string{"PUT /import*", "task_id=OpaqueRef:8ae06e1e-a3d1*", " HTTP/1.1\r\n", "task-id: OpaqueRef:8ae06e1e-a3d1*", "host: h\r\n"}},
		{name: "odd queries", text: "GET /rrd_updates;session_id=" + canaryRef + "#" + canary + " HTTP/1.0\r\n\r\n", keep: []string{"GET ", " HTTP/1.0\r\n"}},
		{name: "user in URL", text: "CONNECT http://root:" + canary + "@host/ HTTP/1.1\r\nhost: x\r\n\r\n", keep: []string{"CONNECT "}},
		{name: "escaped", text: "GET /x%3Fsession_id%3D" + canaryRef + " HTTP/1.1\r\nreferer: https://root:" + canary + "@h/\r\nuser-agent: https://root:" + canary + "@h/ pwd=" + canary + "\r\n\r\n", keep: []string{"GET ", "user-agent: https://***"}},
		{name: "proxy and frame", text: "PROXY TCP6 ::ffff:10.0.0.1 ::ffff:10.0.0.2 44312 443\r\nFRAME 000000000123" + post("/", "", xmlCall("host.get_all", canaryRef)),
			keep: []string{"PROXY TCP6 ::ffff:10.0.0.1 ::ffff:10.0.0.2 44312 443\r\n", "FRAME 000000000123POST / HTTP/1.1\r\n", "<methodName>host.get_all<"}},
		{name: "folded header", text: "POST / HTTP/1.1\r\ncookie: a\r\n  " + canary + "\r\n" + canary + " \r\n" + canary + canary + "\r\n:" + canary + "\r\nbaggage: a=b;pool_secret=" + canary + "\r\n\r\n", keep: []string{"baggage: a=b;pool_secret=*"}},
		{name: "cli", text: "POST /cli HTTP/1.0\r\nUser-agent: xe-cli/Unix/0.2\r\ntraceparent: " + traceparent + "\r\ncontent-length: 300\r\n\r\nvm-start\nuuid=" + canary + "\nusername=root\npassword=" + canary + "\nsession_id=" + canaryRef,
			keep: []string{"POST /cli HTTP/1.0", traceparent, "\r\n\r\nvm-start\n*"}},
		{name: "cli forwarded", text: post("/cli", "", "session_id="+canaryRef+"\r\nvm-start\r\npassword="+canary), keep: []string{"POST /cli "}},
		{name: "cli reply", before: post("/cli", "", "vm-list\npassword=x"), text: "XenSource thin CLI protocol\x00\x00" + canary + "POST / HTTP" + canary},
		{name: "switch call", well: true, text: post("/request/org.xen.xapi.xenops.classic/xapi:7661", "", switchCall(metadata)),
			keep: []string{"POST /request/org.xen.xapi.xenops.classic/xapi:7661 ", `"method":"VM.import_metadata"`, `"id":"91b928e6-5e4c-9f1a-6147-fb162417c0e0"`, `"debug_info":` + quoted(debugInfo), `"id":79`}},
		{name: "switch transfer", well: true, before: post("/transfer", "", `{"from":"64","timeout":30.0,"queues":["org.xen.xapi.xenops.classic"]}`), text: answer(transfer(switchCall(metadata))),
			keep: []string{`[["org.xen.xapi.xenops.classic",65]`, `\"method\":\"VM.import_metadata\"`, `\"id\":\"91b928e6-5e4c-9f1a-6147-fb162417c0e0\"`, strings.Trim(quoted(quoted(debugInfo)), `"`), `"kind":["Request","xapi:7661"]`, `"next":"65"`}},
		{name: "switch transfer request", well: true, text: post("/transfer", "", `{"from":"64","timeout":30.0,"queues":["org.xen.xapi.xenops.classic"]}`), keep: []string{`{"from":"64","timeout":30.0,"queues":["org.xen.xapi.xenops.classic"]}`}},
		{name: "switch response", well: true, text: post("/response/xapi:7661/org.xen.xapi.xenops.classic/64", "", `{"result":"51","error":null,"id":0}`), keep: []string{`{"result":"51","error":null,"id":0}`}},
		{name: "switch response, record", well: true, text: post("/response/xapi:7661/org.xen.xapi.xenops.classic/64", "", `{"result":[{"a":"`+canary+`"},"`+canary+`",5],"error":null,"id":0}`)},
		{name: "switch response, failure", well: true, text: post("/response/xapi:7661/org.xen.xapi.xenops.classic/64", "", `{"result":null,"error":["Does_not_exist",["VM","`+canary+`"]],"id":0}`), keep: []string{`"error":["Does_not_exist",["`}},
		{name: "switch queue", before: "GET /persistent/org.xen.xapi.storage HTTP/1.1\r\n\r\n", text: answer("org.xen.xapi.storage"), keep: []string{"\r\n\r\norg.xen.xapi.storage"}},
		{name: "switch id", well: true, before: post("/request/a/b", "", "{}"), text: answer(`[["org.xen.xapi.xenops.classic",64]]`), keep: []string{`[["org.xen.xapi.xenops.classic",64]]`}},
		{name: "json array elsewhere", well: true, before: post("/jsonrpc", "", "{}"), text: answer(`[["` + canary + `","x"],{"messages":[["` + canary + `"]]}]`)},
		{name: "messages elsewhere", well: true, text: post("/jsonrpc", "", `{"messages":[["`+canary+`"]],"next":"`+canary+`","kind":"`+canary+`","payload":"{\"method\":\"`+canary+`\"}"}`)},
		{name: "storage xml", wellXML: true, text: post("/services/SM", "", xmlCall("SR.attach", canary, pool))},
		{name: "xenopsd xml", wellXML: true,
			text: post("/", "", `<?xml version="1.0"?><methodCall><methodName>VM.start</methodName><params><param><value><struct><member><name>paused</name><value><boolean>0</boolean></value></member><member><name>`+canary+`</name><value>`+canary+`</value></member><member><name>id</name><value>91b928e6-5e4c-9f1a-6147-fb162417c0e0</value></member><member><name>debug_info</name><value>VM.start R:8ae06e1ea3d1&#10;{&quot;traceparent&quot;:&quot;`+traceparent+`&quot;}</value></member></struct></value></param></params></methodCall>`),
			keep: []string{"<name>id</name><value>91b928e6-5e4c-9f1a-6147-fb162417c0e0<", "<name>debug_info</name><value>VM.start R:8ae06e1ea3d1&#10;{&quot;traceparent&quot;:&quot;" + traceparent + "&quot;}<"}},
		{name: "secret in debug_info", well: true, text: post("/", "", `{"method":"VM.start","params":[{"debug_info":"x session_id=`+canaryRef+` password=`+canary+` R:8ae06e1ea3d1"}]}`), keep: []string{"R:8ae06e1ea3d1"}},
		{name: "cdata", text: post("/", "", `<?xml version="1.0"?><methodCall><methodName>VM.start</methodName><params><param><value><![CDATA[<methodName>`+canary+`</methodName>]]>`+canary), keep: []string{"VM.start"}},
		{name: "comment", text: post("/", "", `<methodCall><!-- `+canary+` --><methodName>`+canary+`</methodName>`)},
		{name: "broken json", text: post("/jsonrpc", "", `{"method":"VM.start","params":["`+canary+`""`+canary+`":"`+canary+`"`), keep: []string{"VM.start"}},
		{name: "unescaped level", text: answer(`{"messages":[[["q",65],{"payload":"{\"method\":\"VM.start\",\"params\":[{\"debug_info\":\"x","` + canary + `":"` + canary + `\"}]}"`)},
		{name: "no http", text: "\x16\x03\x01" + canary + "\r\n" + canary},
		{name: "forkexecd", text: `000000000123["Setup",{"cmdargs":["/opt/xensource/sm/LVMSR","` + canary + `"],"env":["PASSWORD=` + canary + `"]}]`, keep: []string{`000000000123[`}},
		{name: "descriptor for forkexecd", text: canary[:8] + "-6f0c-4a3e-9d11-0123456789ab", secrets: []string{canary[:8], "6f0c", "0123456789ab"}, keep: []string{"********-****-****-****-************"}},
		{name: "descriptors for forkexecd", text: strings.Repeat(canary[:8]+"-6f0c-4a3e-9d11-0123456789ab", 2), secrets: []string{canary[:8], "6f0c", "0123456789ab"}, keep: []string{strings.Repeat("********-****-****-****-************", 2)}},
		{name: "no length", text: `123456789012["` + canary + `"]`, secrets: []string{canary, "1234"}},
		{name: "no frame", text: `00000000012x["` + canary + `"]`, secrets: []string{canary, "0000"}},
	}
}

func TestMessages(t *testing.T) {
	for _, m := range messages() {
		t.Run(m.name, func(t *testing.T) {
			x := newExchange()
			if m.before != "" {
				x.send(event.In, m.before)
			}
			got := x.send(event.Out, m.text)
			qt.Assert(t, qt.HasLen(got, len(m.text)))
			want := m.secrets
			if want == nil {
				want = secrets
			}
			qt.Assert(t, qt.Equals(leaks([]byte(got), want...), ""), qt.Commentf("%s", got))
			for _, k := range m.keep {
				qt.Check(t, qt.StringContains(got, k))
			}
			_, body, _ := strings.Cut(got, "\r\n\r\n")
			if m.well {
				qt.Check(t, qt.IsTrue(json.Valid([]byte(body))), qt.Commentf("%s", body))
			}
			if m.wellXML {
				qt.Check(t, qt.IsNil(wellFormed(body)), qt.Commentf("%s", body))
			}
		})
	}
}

func wellFormed(s string) error {
	d := xml.NewDecoder(strings.NewReader(s))
	for {
		if _, err := d.Token(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestCuts cuts every message at every place into two events, and into Head
// and Tail, with and without the flag that says that the second goes on.
func TestCuts(t *testing.T) {
	for _, m := range messages() {
		want := m.secrets
		if want == nil {
			want = secrets
		}
		for cut := 0; cut <= len(m.text); cut++ {
			x := newExchange()
			if m.before != "" {
				x.send(event.In, m.before)
			}
			if got := x.send(event.Out, m.text, cut); leaks([]byte(got), want...) != "" {
				t.Fatalf("%s cut at %d shows %q: %s", m.name, cut, leaks([]byte(got), want...), got)
			}
			for _, tail := range []int{0, 1, 7, 40, 200, len(m.text) - cut - 1} {
				if tail < 0 || cut+tail >= len(m.text) {
					continue
				}
				x := newExchange()
				if m.before != "" {
					x.send(event.In, m.before)
				}
				if got := x.sendCut(event.Out, m.text, cut, tail); leaks([]byte(got), want...) != "" {
					t.Fatalf("%s with a head of %d and a tail of %d shows %q: %s", m.name, cut, tail, leaks([]byte(got), want...), got)
				}
			}
			// The end alone, as after lost records or a reused connection.
			x = newExchange()
			if m.name == "async reply xml" || m.name == "async reply json" {
				continue
			}
			if got := x.send(event.Out, m.text[cut:]); leaks([]byte(got), want...) != "" {
				t.Fatalf("%s from %d on shows %q: %s", m.name, cut, leaks([]byte(got), want...), got)
			}
		}
	}
}

// TestPieces passes the messages in pieces of the kernel's buffer and of other
// sizes.
func TestPieces(t *testing.T) {
	for _, m := range messages() {
		want := m.secrets
		if want == nil {
			want = secrets
		}
		for _, size := range []int{1, 2, 3, 5, 13, 64, 256, 1024} {
			x := newExchange()
			if m.before != "" {
				x.send(event.In, m.before)
			}
			var cuts []int
			for i := size; i < len(m.text); i += size {
				cuts = append(cuts, i)
			}
			if got := x.send(event.Out, m.text, cuts...); leaks([]byte(got), want...) != "" {
				t.Fatalf("%s in pieces of %d shows %q: %s", m.name, size, leaks([]byte(got), want...), got)
			}
		}
	}
}

// TestHeaderThenBody is how requests really come: header and body apart.
func TestHeaderThenBody(t *testing.T) {
	for _, m := range messages() {
		i := strings.Index(m.text, "\r\n\r\n") + 4
		if i < 4 {
			continue
		}
		x := newExchange()
		if m.before != "" {
			x.send(event.In, m.before)
		}
		got := x.send(event.Out, m.text, i)
		for _, k := range m.keep {
			if strings.Contains(k, "\r\n\r\n") {
				continue
			}
			qt.Check(t, qt.StringContains(got, k), qt.Commentf(m.name))
		}
	}
}

func TestTailKeepsDebugInfo(t *testing.T) {
	big := `{"x":"` + strings.Repeat(canary, 1000) + `"}`
	for _, text := range []string{
		post("/request/q/r", "", switchCall(big)),
		answer(transfer(switchCall(big))), // the request was before the probe
	} {
		x := newExchange()
		got := x.sendCut(event.Out, text, 4096, 1024)
		qt.Check(t, qt.StringContains(got[4096:], `traceparent`))
		qt.Check(t, qt.StringContains(got[4096:], traceparent))
		qt.Check(t, qt.StringContains(got[4096:], "R:8ae06e1ea3d1"))
		qt.Check(t, qt.Equals(leaks([]byte(got), secrets...), ""))
	}
}

// TestPermissionIsUsedOnce: a reply that overtakes its request must not profit
// from the request before.
func TestPermissionIsUsedOnce(t *testing.T) {
	x := newExchange()
	x.send(event.In, post("/", "", xmlCall("Async.VM.start", canaryRef)))
	got := x.send(event.Out, answer(xmlReply("OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555")))
	qt.Assert(t, qt.StringContains(got, "OpaqueRef:8ae06e1e-a3d1*"))
	got = x.send(event.Out, answer(xmlReply(canaryRef)))
	qt.Assert(t, qt.Equals(leaks([]byte(got), canaryRef), ""))
	x.send(event.In, post("/", "", xmlCall("Async.VM.start", canaryRef)))
	x.send(event.In, post("/", "", xmlCall("session.login_with_password", "root", canary)))
	got = x.send(event.Out, answer(xmlReply(canaryRef)))
	qt.Assert(t, qt.Equals(leaks([]byte(got), canaryRef), ""))
}

func TestConnectionsAreBounded(t *testing.T) {
	r := New(64)
	for i := range 10000 {
		ev := event.Event{Kind: event.KindData, Dir: event.In, Conn: event.Conn{TGID: 1, FD: int32(i)}, Head: []byte("POST / HTTP/1.1\r\n"), Bytes: 17}
		r.Event(&ev)
	}
	qt.Check(t, qt.IsTrue(len(r.young)+len(r.old) <= 64))
	qt.Check(t, qt.Equals(r.Forgotten()+uint64(len(r.young)+len(r.old)), 10000))
	c := event.Conn{TGID: 1, FD: 9999}
	r.Event(&event.Event{Kind: event.KindClose, Conn: c})
	_, young := r.young[c]
	_, old := r.old[c]
	qt.Check(t, qt.IsFalse(young || old))
}

func logEvent(line string) string {
	ev := event.Event{Kind: event.KindLog, Head: []byte(line), Bytes: uint64(len(line))}
	New(0).Event(&ev)
	return string(ev.Head)
}

func TestLogLines(t *testing.T) {
	head := "<175>Aug 21 02:00:23 xenopsd-xc: [debug|" + traceparent + "|31 |Async.VM.start R:8ae06e1ea3d1|xenops_server] "
	const vm = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"
	for _, line := range []string{
		head + `Task 51 reference Async.VM.start R:8ae06e1ea3d1: ["VM_start",["` + vm + `",false]]`,
		head + `Performing: ["VM_hook_script",["` + vm + `","VM_pre_start"]]`,
		head + `Performing: ["Parallel",["` + vm + `","VBD.plug vm=` + vm + `",[["VBD_plug",["` + vm + `","xvda"]],["Nested_parallel",["` + vm + `","VIF.plug vm=` + vm + `",[["VIF_plug",["` + vm + `","0"]]]]]]]]`,
		head + `Queue.pop returned ["Atomic",["VM_remove","` + vm + `"]]`,
		head + `Task 12 completed; duration = 0.25`,
		head + `TASK.signal 12 = ["Pending",0.6000000000000001]`,
		head + `spawning a new thread to handle the current task (trackid=fda2d175b935dd6aa2c32cf5043ef959)`,
		head + `task VM.atomic_set_resident_on R:57890aeb1784 (uuid:89727ec7-d91d-d870-2c67-052f9e9e9270) created (trackid=df3990c0b509ec9d1d829379e638106d) by task R:22eebf8c7058`,
		head + `task dispatch:session.logout D:5ebc2384e757 created by task D:e3452f893b94`,
		"<175>Nov 22 12:23:14 xenopsd-xc: [debug||90 |VM.start_on R:07432559b308\\x0A{\"traceparent\":\"" + traceparent + "\",\"baggage\":[[\"span.depth\",\"10\"]]}|xenops_server] Performing: [\"VM_build\",[\"" + vm + "\",false]]",
		"<175>Nov 22 12:23:14 xenopsd-xc: [debug||91 |Parallel:task=4.atoms=2.(VBD.plug A | B VM=" + vm + ")|xenops_server] Performing: [\"VBD_plug\",[[\"" + vm + "\",\"xvda\"],false]]",
		"<175>Nov 22 12:24:31 xapi: [debug||75 HTTPS 10.0.0.1->:::80|session.login_with_password D:7fab96eb5fb1|dummytaskhelper] task dispatch:pool.get_all D:69533a23bf20 created by task D:7fab96eb5fb1",
	} {
		qt.Check(t, qt.Equals(logEvent(line), line))
	}
	const sr = "f0e1d2c3-0000-4000-8000-00000000aaaa"
	for line, want := range map[string]string{
		`VM.start_on: VM = '` + vm + ` (` + canary + `)'; host '` + vm + ` (vm)'`: `VM.start_on: VM = '` + vm + ` ***`,
		`SR.scan: SR = '` + sr + `'`:                              `SR.scan: SR = '` + sr + `'`,
		`VDI.pool_migrate: VDI = '` + vm + `'; SR = '` + sr + `'`: `VDI.pool_migrate: VDI = '` + vm + `'; SR = '` + sr + `'`,
		`VM.x: VM = 'OpaqueRef:` + vm + `'`:                       `****`,
		`session.x: session = '` + vm + `'`:                       `****`,
	} {
		got := logEvent(head + line)
		qt.Check(t, qt.StringContains(got, head+want))
		qt.Check(t, qt.Equals(leaks([]byte(got), secrets...), ""), qt.Commentf("%s", got))
	}
	push := logEvent(head + `Queue.push ["VM_start",["` + vm + `",false]] onto ` + vm + `:[ ["VM_rename","` + canary + `"] ]`)
	qt.Check(t, qt.StringContains(push, `Queue.push ["VM_start",["`+vm+`",false]] onto `+vm+":*"))
	failed := logEvent(head + `Task 12 failed; exception = ["Internal_error","` + canary + `"]\x0A; duration = 0`)
	qt.Check(t, qt.StringContains(failed, `Task 12 failed; exception = ["Internal_error","*`))
	failed = logEvent(head + `Task 12 failed; Xenops_interface.Xenopsd_error([S(Does_not_exist);[S(VM);S(` + canary + `)]])`)
	qt.Check(t, qt.StringContains(failed, `Task 12 failed; Xenops_interface.Xenopsd_error([S(Does_not_exist)*`))
}

func TestLogSecrets(t *testing.T) {
	const head = "<175>Aug 21 02:00:23 xapi: [debug|" + traceparent + "|31 /var/lib/xcp/xapi|VM.start R:8ae06e1ea3d1|"
	const vm = "91b928e6-5e4c-9f1a-6147-fb162417c0e0"
	for _, line := range []string{
		head + "db_write] create_row session (" + canaryRef + ") [(_ref,v)]",
		head + "http] Request { query = [ session_id=" + canaryRef + "; pool_secret=" + pool + " ]; cookie = [ " + canary + " ] }",
		head + "sm] SM LVMSR vdi_attach <methodCall>" + canary + "</methodCall>",
		head + "xenops] xenops: VM.import_metadata {\"xsdata\":{\"vm-data/password\":\"" + canary + "\"}}",
		head + "xenops_server] Task 5 reference VM.start_on R:07432559b308: [\"Atomic\",[\"VM_import_metadata\",[\"" + vm + "\",{\"" + canary + "\":\"" + canary + "\",\"vm\":[\"" + canary + "\"]}]]]",
		head + `xenops_server] Performing: ["VM_migrate",["` + vm + `",{"vmm_url":"https://h/?session_id=` + canaryRef + `"}]]`,
		head + `xenops_server] Performing: ["VM_rename",["` + vm + `","` + canary + `"]]`,
		head + `xenops_server] Performing: ["VM_rename",["a\\"` + canary + `\\"b"]]`,
		"<175>Aug 21 02:00:23 xapi: [debug||31 |login password=" + canary + " session_id=" + canaryRef + "|x] y",
		"<175>Aug 21 02:00:23 xapi: [debug||31 |pool_secret: " + canary + "|x] Task 5 reference session_id=" + canaryRef + ": [",
		"<30>Aug 21 02:00:23 SM: password " + canary,
		"<175>Aug 21 02:00:23 xapi: [debug|a|b] task |31 |x|sm] SM call <methodCall>" + canary + " created ",
		head + "x] Task 12 failed; Failure(\"" + canary + "\") ([S(" + canary + ")",
		head + "audit] VM.start: VM = '" + vm + " (" + canary + ")'; x = '" + canary + "'; VM = '" + canaryRef + "'",
		head + "audit] VM." + canary + ": VM = '" + canary + "'",
		canary,
		"[" + canary + "|a] " + canary,
	} {
		for n := 0; n <= len(line); n++ {
			got := logEvent(line[:n])
			qt.Assert(t, qt.HasLen(got, n))
			qt.Assert(t, qt.Equals(leaks([]byte(got), secrets...), ""), qt.Commentf("%s", got))
		}
	}
}

// Some daemons take the log tag as a parameter without a name: of it the task's id
// stays, and nothing of what stands beside it.
func TestTagWithoutName(t *testing.T) {
	const id = " R:8ae06e1ea3d1"
	for name, body := range map[string]string{
		"json":              `{"method":"reserve_memory_range","params":["` + canary + id + `","` + canary + `",1,2],"id":8}`,
		"json behind named": `{"method":"Network.Interface.get_mac","params":[{"name":"` + canary + `"},"` + canary + id + `"],"id":103}`,
		"xml":               xmlCall("Network.Interface.get_mac", canary+id, canary),
	} {
		for _, path := range []string{"/", "/var/lib/xcp/networkd", "/var/xapi/memory"} {
			got := newExchange().send(event.In, post(path, "", body))
			qt.Check(t, qt.Equals(leaks([]byte(got), canary), ""), qt.Commentf("%s: %s", name, got))
			qt.Check(t, qt.Equals(strings.Count(got, id), 1), qt.Commentf("%s: %s", name, got))
		}
	}
	for name, body := range map[string]string{
		"no id":        `{"method":"login","params":["x R:8ae06e1ea3d","R:8ae06e1ea3dg","xR:8ae06e1ea3d1","` + canaryRef + `"],"id":8}`,
		"xml no id":    xmlCall("login", "x R:8ae06e1ea3d", "xR:8ae06e1ea3d1", canaryRef),
		"xml, a field": `<methodCall><methodName>login</methodName><params><param><value><struct><member><name>p</name><value>x R:8ae06e1ea3d1</value></member></struct></value></param></params></methodCall>`,
		"cut":          `{"method":"login","params":["x R:8ae06e1ea3d1`,
	} {
		got := newExchange().send(event.In, post("/", "", body))
		qt.Check(t, qt.Equals(leaks([]byte(got), "8ae06e1ea3d1", canaryRef), ""), qt.Commentf("%s: %s", name, got))
	}
}
