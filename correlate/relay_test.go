package correlate

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
	"go.opentelemetry.io/otel/trace"
)

var messageSwitch = daemon{event.MessageSwitch, 50, "message-switch"}

// take is a request that the switch reads, in the pieces that it was sent in.
func (s *script) take(conn, path, body string) {
	s.in(messageSwitch, conn, 50, fmt.Sprintf("POST %s HTTP/1.1\r\nuser-agent: cohttp\r\ncontent-length: %d\r\n\r\n", path, len(body)))
	s.data(messageSwitch, conn, 50, event.In, body, event.FlagMore)
}

func (s *script) give(conn, body string) event.Time {
	return s.out(messageSwitch, conn, 50, fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body))
}

func TestRelay(t *testing.T) {
	for _, order := range []string{"as it happens", "the switch's answer late"} {
		t.Run(order, func(t *testing.T) {
			s := newScript(t)
			s.openSwitch()
			s.open(messageSwitch, "xapi", 7, event.Accepted, "/var/run/message-switch/sock")
			s.open(messageSwitch, "xenopsd", 8, event.Seeded, "")
			s.accept("c", 18)
			s.request("c", 110, "VM.start_on")
			s.take("xenopsd", "/transfer", `{"from":"63","timeout":30.0,"queues":["`+xenops+`"]}`)
			s.ask(110, "VM.exists", "VM.start_on R:07432559b308")
			s.take("xapi", "/request/"+xenops+"/xapi:100", rpcBody("VM.exists", "VM.start_on R:07432559b308"))
			var last event.Time
			if order == "as it happens" {
				last = s.give("xapi", fmt.Sprintf(`[["%s",64]]`, xenops))
			}
			s.number(110, 64)
			s.deliver(64, "VM.exists", "VM.start_on R:07432559b308")
			if last == 0 {
				last = s.give("xapi", fmt.Sprintf(`[["%s",64]]`, xenops))
			}
			s.give("xenopsd", `{"messages":[],"next":"64"}`)
			s.thread(xenopsd, 201, 210)
			s.take("xenopsd", "/response/xapi:100/"+xenops+"/64", `{"result":false,"error":null,"id":0}`)
			s.give("xenopsd", `[["xapi:100",76]]`)
			s.respond(64, 210, "false")
			s.answered(64, "false")
			s.reply("c", 110, success, "")
			name := "relay " + xenops + " VM.exists"
			s.under(name, send+"VM.exists", LinkQueue)
			s.under("VM.exists", send+"VM.exists", LinkQueue)
			sp := s.span(name)
			qt.Check(t, qt.Equals(sp.Component, event.MessageSwitch))
			qt.Check(t, qt.Equals(sp.Service, "message-switch"))
			qt.Check(t, qt.Equals(sp.Kind, trace.SpanKindServer))
			qt.Check(t, qt.Equals(sp.End, int64(last-1_000)))
			qt.Check(t, qt.Equals(attr(sp, "messaging.message.id"), "64"))
			qt.Check(t, qt.Equals(attr(sp, "messaging.destination.name"), xenops))
			qt.Check(t, qt.HasLen(s.spans, 4))
			s.wait(time.Minute)
			st := s.e.Stats()
			qt.Check(t, qt.Equals(st.Activities, 0))
			qt.Check(t, qt.Equals(st.Trees, 0))
			qt.Check(t, qt.Equals(st.Keys, 0))
		})
	}
}

// The switch alone is watched.
func TestRelayCallerUnseen(t *testing.T) {
	s := newScript(t)
	s.open(messageSwitch, "xapi", 7, event.Seeded, "")
	s.take("xapi", "/request/"+xenops+"/xapi:100", rpcBody("VM.exists", debugInfo("VM.start_on R:07432559b308", native)))
	s.give("xapi", fmt.Sprintf(`[["%s",64]]`, xenops))
	s.take("xapi", "/request/gone/xapi:100", rpcBody("VM.stat", ""))
	s.give("xapi", `[]`)
	s.take("xapi", "/request/"+xenops+"/xapi:100", rpcBody("VM.lost", ""))
	s.close(messageSwitch, "xapi")
	s.wait(3 * time.Second)
	sp := s.span("relay " + xenops + " VM.exists")
	qt.Check(t, qt.Equals(sp.Link, LinkTraceparent))
	qt.Check(t, qt.Equals(sp.TraceID.String(), nativeT))
	qt.Check(t, qt.Equals(s.span("relay gone VM.stat").Error, "no queue"))
	qt.Check(t, qt.Equals(s.span("relay "+xenops+" VM.lost").Incomplete, "closed before the reply"))
	qt.Check(t, qt.Equals(s.e.Stats().Keys, 0))
	qt.Check(t, qt.Equals(s.e.Stats().Trees, 0))
}

// A daemon that serves its own socket is told no more than the task.
func TestSocketRPCOfTask(t *testing.T) {
	s := newScript(t)
	networkd := daemon{event.Networkd, 400, "xcp-networkd"}
	s.accept("c", 18)
	s.request("c", 110, "VM.start")
	s.log(xapi, 110, "VM.start R:07432559b308", "xapi", "something")
	s.open(networkd, "n", 5, event.Accepted, "/var/lib/xcp/networkd")
	body := `<?xml version="1.0"?><methodCall><methodName>Network.Interface.get_mac</methodName><params><param><value><struct><member><name>name</name><value>eth0</value></member></struct></value></param><param><value>VM.start R:07432559b308</value></param></params></methodCall>`
	s.in(networkd, "n", 410, fmt.Sprintf("POST /var/lib/xcp/networkd HTTP/1.1\r\ncontent-length: %d\r\n\r\n", len(body)))
	s.data(networkd, "n", 410, event.In, body, event.FlagMore)
	s.out(networkd, "n", 410, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok")
	s.reply("c", 110, success, "")
	s.under("Network.Interface.get_mac", "VM.start", LinkTask)
	sp := s.span("Network.Interface.get_mac")
	qt.Check(t, qt.Equals(sp.Kind, trace.SpanKindServer))
	qt.Check(t, qt.Equals(sp.Service, "xcp-networkd"))
}
