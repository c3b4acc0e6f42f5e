package correlate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// traced is a log line of xapi 26.8 and later.
func (s *script) traced(tid uint32, traceparent, tag, module, message string) {
	ev := xapi.event(event.KindLog, tid)
	ev.Head = []byte(fmt.Sprintf("<175>Nov 22 12:23:14 xapi: [debug|%s|6 |%s|%s] %s", traceparent, tag, module, message))
	ev.Bytes = uint64(len(ev.Head))
	s.put(ev)
}

// A send lies under the native span that its message names; what comes of it is
// below it and needs no other.
func TestNativeParent(t *testing.T) {
	for _, header := range []string{"traceparent: 00-" + nativeT + "-1212121212121212-01", "x: y"} {
		s := newScript(t)
		s.openSwitch()
		s.accept("c", 18)
		s.request("c", 110, "VM.start_on", header)
		s.rpc(64, 110, 210, "VM.exists", debugInfo(tagged, native), "null")
		s.reply("c", 110, success, "")
		s.under(send+"VM.exists", "VM.start_on", LinkThread)
		s.under("VM.exists", send+"VM.exists", LinkQueue)
		for name, want := range map[string]string{"VM.start_on": "", send + "VM.exists": nativeS, "VM.exists": ""} {
			got := s.span(name)
			qt.Check(t, qt.Equals(attr(got, keyNative), want))
			qt.Check(t, qt.Equals(got.Native.IsValid(), want != ""))
			qt.Check(t, qt.Equals(got.TraceID.String(), nativeT))
		}
		qt.Check(t, qt.Equals(s.span(send+"VM.exists").Native.String(), nativeS))
	}
}

// A message that names a span of another trace says nothing about this one; one
// that xapi itself names as the parent is not told twice.
func TestNoNativeParent(t *testing.T) {
	s := newScript(t)
	s.openSwitch()
	s.accept("c", 18)
	s.request("c", 110, "VM.start_on", "traceparent: "+caller)
	s.rpc(64, 110, 210, "VM.exists", debugInfo(tagged, native), "null")
	s.reply("c", 110, success, "")
	qt.Check(t, qt.IsFalse(s.span(send+"VM.exists").Native.IsValid()))
	s.rpc(65, 130, 211, "VM.stat", debugInfo(tagged, native), "null") // of a thread of which nothing is known
	qt.Check(t, qt.IsFalse(s.span(send+"VM.stat").Native.IsValid()))
	qt.Check(t, qt.Equals(s.span(send+"VM.stat").ParentID.String(), nativeS))
}

// The log line of a call's own task tells the trace of a call that sends nothing.
func TestTraceOfLog(t *testing.T) {
	const tag = "VM.create R:07432559b308"
	other := strings.ReplaceAll(native, "ab", "ee")
	for _, c := range []struct {
		what  string
		lines func(s *script)
		bound bool
	}{
		{"its own line", func(s *script) { s.traced(110, native, tag, "xapi", "VM.create: name_label = 'x'") }, true},
		{"after one of its checks, which have a trace of their own", func(s *script) {
			s.traced(110, other, "dispatch:VM.create D:000000000001", "api_effect", "VM.create")
			s.traced(110, native, tag, "xapi", "VM.create: name_label = 'x'")
		}, true},
		{"one of another version", func(s *script) { s.log(xapi, 110, tag, "xapi", "VM.create: name_label = 'x'") }, false},
		{"one of another task", func(s *script) { s.traced(110, native, "event.inject D:000000000001", "xapi", "x") }, false},
		{"one of the same task under another name", func(s *script) {
			s.traced(110, native, tag, "xapi", "x")
			s.traced(110, other, tag, "xapi", "y") // too late
		}, true},
		{"one that tells of an inner task", func(s *script) {
			s.traced(110, native, tag, "dummytaskhelper", "task dispatch:event.inject D:ef0d1e87b2eb created by task D:8a27ed1aca74")
			s.traced(110, native, tag, "xapi", "Waking up the event thread")
		}, false},
		{"one after it started a program", func(s *script) {
			s.fork(xapi, 110, 300)
			s.exec(xapi, 300, "helper", "")
			s.exit(xapi, 300, 0)
			s.traced(110, native, tag, "xapi", "x")
		}, false},
		{"one of another thread", func(s *script) { s.traced(111, native, tag, "xapi", "x") }, false},
		{"what is no traceparent", func(s *script) { s.traced(110, "00-"+nativeT+"-01", tag, "xapi", "x") }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newScript(t)
			s.accept("c", 18)
			s.request("c", 110, "VM.create")
			c.lines(s)
			s.reply("c", 110, success, "")
			s.root("VM.create")
			qt.Check(t, qt.Equals(s.span("VM.create").TraceID.String() == nativeT, c.bound))
		})
	}
	t.Run("the task of an Async call", func(t *testing.T) {
		s := newScript(t)
		s.accept("c", 18)
		s.request("c", 110, "Async.VM.create")
		s.thread(xapi, 110, 111)
		s.reply("c", 110, success, "OpaqueRef:07432559-b308-0000-0000-000000000000")
		s.traced(111, native, "Async."+tag, "xapi", "x")
		s.threadExit(xapi, 111)
		qt.Check(t, qt.Equals(s.span("Async.VM.create").TraceID.String(), nativeT))
		s.under("VM.create", "Async.VM.create", LinkClone)
	})
	t.Run("a call whose caller gave the trace", func(t *testing.T) {
		s := newScript(t)
		s.accept("c", 18)
		s.request("c", 110, "VM.create", "traceparent: "+caller)
		s.traced(110, native, tag, "xapi", "x")
		s.reply("c", 110, success, "")
		qt.Check(t, qt.Equals(s.span("VM.create").TraceID.String(), callerID))
	})
}
