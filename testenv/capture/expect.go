package capture

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

// Expected is what a recording holds, found by plain means that owe nothing to
// package correlate: whole requests put together from the recorded calls, and
// regular expressions. All times are those of the recording.
type Expected struct {
	Calls      []*Call
	Messages   []*Message
	Operations []*Operation
}

// Call is a request that a client of xapi made.
type Call struct {
	Name     string // method, "xe command", or "PUT /path"
	TID      uint32 // of xapi's thread
	TraceID  string // of the traceparent header, "" if there was none
	ParentID string
	Flags    string
	Start    event.Time // the first read returned
	Read     event.Time // the head was read
	End      event.Time // the last write returned
	Failed   bool
}

// Message is a call through message-switch.
type Message struct {
	ID        int64
	Queue     string
	Method    string
	Label     string     // of the task it is made for, as debug_info has it: "VM.start_on"
	Task      string     // "R:…" or "D:…"
	TraceID   string     // of the traceparent in debug_info, "" if there was none
	TID       uint32     // that sends
	Sent      event.Time // the first write began
	Delivered event.Time // to xenopsd
	Answered  event.Time // the last write of the answer returned
	Returned  event.Time // the answer was read by xapi
	Answer    string     // what "result" is
}

// Real tells that the message is part of a task, not background work.
func (m *Message) Real() bool { return strings.HasPrefix(m.Task, "R:") }

// Operation is a task of xenopsd as its log lines tell it.
type Operation struct {
	Name      string // "VM_start", "Atomic (VM_unpause)"
	Number    int64
	Label     string
	Task      string
	TID       uint32
	Start     event.Time
	End       event.Time // 0 if it did not end
	AskedFor  *Message   // whose answer has its number, or during which it ran on the same thread
	Atoms     []*Atom
	Completed bool
}

// Atom is a step of an operation.
type Atom struct {
	Name  string
	Start event.Time
}

// traffic is all bytes that went one way on a socket until it turned.
type traffic struct {
	tgid, tid   uint32
	out         bool
	path        string
	data        []byte
	first, last event.Time
	head        event.Time // the end of the head was there
}

// messages puts the bytes of every socket together.
func (r *Recording) messages() []*traffic {
	c := converter{procs: r.Processes}
	tgids := make(map[uint32]uint32)
	for tid, tgid := range r.Processes.Threads {
		tgids[tid] = tgid
	}
	c.tgids = tgids
	type socket struct {
		tgid uint32
		ino  uint64
	}
	open := make(map[socket]*traffic)
	var all []*traffic
	for i := range r.Records {
		rec := &r.Records[i]
		if rec.Kind == strace.Enter && forks(rec.Call.Name) && rec.Call.Return > 0 {
			tgids[uint32(rec.Call.Return)] = tgids[rec.TID]
		}
		if rec.Kind != strace.Exit || result(rec.Call) <= 0 || rec.Call.Name != "read" && rec.Call.Name != "write" {
			continue
		}
		fd, _ := arg(rec.Call, 0).FD()
		data, _, ok := arg(rec.Call, 1).Bytes()
		if !ok || !fd.Stream() {
			continue
		}
		s := socket{tgids[rec.TID], fd.Ino}
		t := open[s]
		out := rec.Call.Name == "write"
		if t == nil || t.out != out {
			t = &traffic{tgid: s.tgid, tid: rec.TID, out: out, path: fd.Path, first: event.Time(rec.Call.End)}
			if out {
				t.first = event.Time(rec.Call.Start)
			}
			open[s] = t
			all = append(all, t)
		}
		t.data = append(t.data, data...)
		t.last = event.Time(rec.Call.End)
		if t.head == 0 && bytes.Contains(t.data, []byte("\r\n\r\n")) {
			t.head = t.last
		}
	}
	return all
}

var (
	requestLine  = regexp.MustCompile(`^([A-Z]+) (/[^ ?]*)[^ ]* HTTP/1\.[01]\r\n`)
	traceparent  = regexp.MustCompile(`(?i)\r\ntraceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\r\n`)
	xmlMethod    = regexp.MustCompile(`<methodName>([^<]+)</methodName>`)
	jsonMethod   = regexp.MustCompile(`"method": ?"([^"]+)"`)
	switchCall   = regexp.MustCompile(`^POST /request/([^/]+)/([^ ]+) HTTP`)
	switchSent   = regexp.MustCompile(`\[\["([^"]+)",(\d+)\]\]$`)
	switchTaken  = regexp.MustCompile(`\[\["([^"]+)",(\d+)\],\{"payload":"(.*?[^\\])","kind":\["(Request|Response)",(?:"[^"]+"|\["([^"]+)",(\d+)\])\]\}`)
	switchAnswer = regexp.MustCompile(`^POST /response/[^/]+/([^/]+)/(\d+) HTTP`)
	debugInfo    = regexp.MustCompile(`"debug_info":"([^"\\]*?) ([RD]:[0-9a-f]{12})(?:\\n\{\\"traceparent\\":\\"00-([0-9a-f]{32})-)?`)
	answerResult = regexp.MustCompile(`"result":("[^"]*"|[^,]*),"error"`)
	taskStart    = regexp.MustCompile(`\] Task (\d+) reference (.*?) ([RD]:[0-9a-f]{12})[^ ]*: \["([A-Za-z_]+)"(?:,\["([A-Za-z_]+)")?`)
	taskEnd      = regexp.MustCompile(`\] Task (\d+) (completed|failed);`)
	performing   = regexp.MustCompile(`\] Performing: \["([A-Za-z_]+)"(?:,\["([A-Z][A-Za-z_]+)")?`)
)

// Expect reads a recording.
func (r *Recording) Expect() *Expected {
	var x Expected
	all := r.messages()
	x.calls(r, all)
	x.messages(all)
	x.operations(r)
	return &x
}

func (x *Expected) calls(r *Recording, all []*traffic) {
	open := make(map[uint32]*Call) // thread → call not answered yet
	for _, t := range all {
		if component(r.Processes.Names[t.tgid]) != event.Xapi || t.path != "/var/lib/xcp/xapi" {
			continue
		}
		if !t.out {
			if c := t.call(); c != nil {
				open[t.tid] = c
				x.Calls = append(x.Calls, c)
			}
		} else if c := open[t.tid]; c != nil {
			c.End = t.last
			c.Failed = c.Failed || bytes.Contains(t.data, []byte("<value>Failure</value>")) || bytes.Contains(t.data, []byte(`"error":{`))
		}
	}
}

// messages follows the calls through the switch: first their senders, who learn
// a message's number later than its receiver may have answered it.
func (x *Expected) messages(all []*traffic) {
	type key struct {
		queue string
		id    int64
	}
	id := func(queue, number []byte) key {
		n, _ := strconv.ParseInt(string(number), 10, 64)
		return key{string(queue), n}
	}
	byID := make(map[key]*Message)
	waiting := make(map[uint32]*Message) // thread → message that it has sent
	for _, t := range all {
		if m := t.message(); m != nil && t.out {
			waiting[t.tid] = m
			x.Messages = append(x.Messages, m)
		}
		if s := switchSent.FindSubmatch(t.data); s != nil && !t.out && waiting[t.tid] != nil {
			k := id(s[1], s[2])
			byID[k] = waiting[t.tid]
			byID[k].ID = k.id
			delete(waiting, t.tid)
		}
	}
	for _, t := range all {
		if s := switchAnswer.FindSubmatch(t.data); s != nil && t.out {
			if m := byID[id(s[1], s[2])]; m != nil {
				m.Answered = t.last
				if a := answerResult.FindSubmatch(t.data); a != nil {
					m.Answer = strings.Trim(string(a[1]), `"`)
				}
			}
		}
		if t.out {
			continue
		}
		for _, s := range switchTaken.FindAllSubmatch(t.data, -1) {
			if string(s[4]) == "Response" {
				if m := byID[id(s[5], s[6])]; m != nil {
					m.Returned = t.last
				}
			} else if m := byID[id(s[1], s[2])]; m != nil {
				m.Delivered = t.last
			}
		}
	}
}

func (t *traffic) call() *Call {
	line := requestLine.FindSubmatch(t.data)
	if line == nil {
		return nil
	}
	c := &Call{Name: string(line[1]) + " " + string(line[2]), TID: t.tid, Start: t.first, Read: t.head}
	head, body, _ := bytes.Cut(t.data, []byte("\r\n\r\n"))
	if tp := traceparent.FindSubmatch(append(head, "\r\n"...)); tp != nil {
		c.TraceID, c.ParentID, c.Flags = string(tp[1]), string(tp[2]), string(tp[3])
	}
	if m := xmlMethod.FindSubmatch(body); m != nil {
		c.Name = string(m[1])
	} else if m := jsonMethod.FindSubmatch(body); m != nil {
		c.Name = string(m[1])
	} else if string(line[2]) == "/cli" {
		command, _, _ := bytes.Cut(body, []byte("\n"))
		c.Name = "xe " + string(command)
	}
	return c
}

func (t *traffic) message() *Message {
	s := switchCall.FindSubmatch(t.data)
	if s == nil {
		return nil
	}
	m := &Message{Queue: string(s[1]), TID: t.tid, Sent: t.first}
	if method := jsonMethod.FindSubmatch(t.data); method != nil {
		m.Method = string(method[1])
	}
	if d := debugInfo.FindSubmatch(t.data); d != nil {
		m.Label, m.Task, m.TraceID = string(d[1]), string(d[2]), string(d[3])
	}
	return m
}

// operations reads xenopsd's log lines.
func (x *Expected) operations(r *Recording) {
	onThread := make(map[uint32]*Operation)
	for i := range r.Records {
		rec := &r.Records[i]
		if rec.Kind != strace.Exit || rec.Call.Name != "sendto" {
			continue
		}
		line, _, _ := arg(rec.Call, 1).Bytes()
		if !bytes.Contains(line, []byte(" xenopsd-xc: ")) {
			continue
		}
		at := event.Time(rec.Call.End)
		if s := taskStart.FindSubmatch(line); s != nil {
			op := &Operation{Name: string(s[4]), Label: string(s[2]), Task: string(s[3]), TID: rec.TID, Start: at}
			if op.Name == "Atomic" {
				op.Name = "Atomic (" + string(s[5]) + ")"
			}
			op.Number, _ = strconv.ParseInt(string(s[1]), 10, 64)
			onThread[rec.TID] = op
			x.Operations = append(x.Operations, op)
		} else if s := performing.FindSubmatch(line); s != nil {
			if op := onThread[rec.TID]; op != nil {
				name := string(s[1])
				if name == "Best_effort" {
					name += " (" + string(s[2]) + ")"
				}
				op.Atoms = append(op.Atoms, &Atom{Name: name, Start: at})
			}
		} else if s := taskEnd.FindSubmatch(line); s != nil {
			if op := onThread[rec.TID]; op != nil && strconv.FormatInt(op.Number, 10) == string(s[1]) {
				op.End, op.Completed = at, string(s[2]) == "completed"
				delete(onThread, rec.TID)
			}
		}
	}
	for _, op := range x.Operations {
		number := strconv.FormatInt(op.Number, 10)
		i := slices.IndexFunc(x.Messages, func(m *Message) bool {
			return m.Task == op.Task && m.Answer == number && strings.HasPrefix(m.Method, "VM.")
		})
		if i < 0 { // done while its caller waits
			i = slices.IndexFunc(x.Messages, func(m *Message) bool {
				return m.Task == op.Task && m.Delivered <= op.Start && op.Start <= m.Answered && strings.HasPrefix(m.Method, "VM.") && strings.Contains(op.Name, strings.Replace(m.Method, ".", "_", 1))
			})
		}
		if i >= 0 {
			op.AskedFor = x.Messages[i]
		}
	}
}
