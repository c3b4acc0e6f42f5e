package redact

import (
	"bytes"
	"math"
)

// place is where in a message the next piece of one direction begins.
type place uint8

const (
	atStart  place = iota // of a message, or nothing is known
	inHeader              // within the lines of a header
	atBody                // the header was complete
	inBody                // bytes of the body were seen
)

// line is what is known of the header line that the last piece ended in.
type line uint8

const (
	lineNew     line = iota // at its start
	lineMask                // its rest is masked
	lineTrace               // the value of traceparent
	lineLength              // the value of content-length
	lineEndOfCR             // only its CR was seen
)

// class is what a request's path says about bodies.
type class uint8

const (
	classUnknown class = iota
	classRPC           // XML-RPC or JSON-RPC
	classSwitch        // message-switch
	classCommand       // /cli: one word, then a binary protocol until close
	classOpaque        // images, databases, consoles, …: never shown
)

// reply is what may be kept of the value in the next reply.
type reply uint8

const (
	replyDeny  reply = iota
	replyAsync       // a task reference, as far as taskRef tells
	replyTask        // a task id or UUID of a toolstack service
)

// flow is one direction of a connection.
type flow struct {
	at     place
	line   line
	reply  bool  // the message is a reply
	length int64 // content-length as far as it was read; -1: none
	left   int64 // bytes of the body that have not been seen; math.MaxInt64: not known
}

// connState is what is remembered of a connection.
type connState struct {
	flow    [2]flow // by event.Dir & 1
	class   class   // of the last request
	reply   reply   // given by the last request, for the next reply
	pending reply   // of the reply that has begun
}

// readable tells whether bodies may hold anything that is kept.
func (st *connState) readable() bool {
	return st.class != classCommand && st.class != classOpaque
}

// rule says what of a header's value is kept.
type rule uint8

const (
	ruleMask rule = iota
	ruleText
	ruleTrace
	ruleNumber
	ruleTask
)

// headerRules lists the headers with a value that is kept; all others are
// masked. Names are in lower case.
var headerRules = []struct {
	name string
	rule rule
}{
	{"content-length", ruleNumber},
	{"traceparent", ruleTrace},
	{"tracestate", ruleText},
	{"baggage", ruleText},
	{"host", ruleText},
	{"user-agent", ruleText},
	{"content-type", ruleText},
	{"connection", ruleText},
	{"task-id", ruleTask},
	{"subtask-of", ruleTask},
	{"x-http-other-config-dbg", ruleText},
	{"originator", ruleText},
	{"hdr", ruleNumber},
	{"transfer-encoding", ruleText},
	{"content-encoding", ruleText},
	{"accept", ruleText},
	{"accept-encoding", ruleText},
	{"cache-control", ruleText},
	{"expect", ruleText},
	{"date", ruleText},
	{"server", ruleText},
}

func headerRule(name []byte) rule {
	for i := range headerRules {
		if equalFold(name, headerRules[i].name) {
			return headerRules[i].rule
		}
	}
	return ruleMask
}

// piece masks what the canvas holds: moved bytes of one direction, of which
// the canvas may hold only the first.
func (r *Redactor) piece(st *connState, f *flow, moved int64) {
	i, n := 0, len(r.c.src)
	for i < n {
		switch f.at {
		case atStart:
			if st.class == classCommand {
				return // the protocol of /cli never goes back to HTTP
			}
			next, ok := r.startLine(st, f, i)
			if !ok {
				// The start was not seen. Only a document tells what it is.
				if i == 0 && st.class == classUnknown {
					r.forkexecd()
				}
				f.at, f.left = atBody, math.MaxInt64
				continue
			}
			i = next
		case inHeader:
			i = r.header(f, i)
			if f.at == atBody {
				f.headerEnds()
			}
		case atBody, inBody:
			end := n
			if f.left < int64(end-i) {
				end = i + int(f.left)
			}
			r.body(st, f, i, end)
			f.consume(int64(end - i))
			i = end
		}
	}
	if unseen := moved - int64(n); unseen > 0 {
		f.skip(unseen)
	}
}

// headerEnds says what follows a complete header.
func (f *flow) headerEnds() {
	switch {
	case f.length > 0:
		f.left = f.length
	case f.length < 0 && f.reply:
		f.left = math.MaxInt64 // until the other side speaks
	default:
		*f = flow{}
	}
}

// consume goes over n bytes of the body.
func (f *flow) consume(n int64) {
	f.at = inBody
	if f.left == math.MaxInt64 {
		return
	}
	if f.left -= n; f.left <= 0 {
		*f = flow{}
	}
}

// skip goes over bytes that were moved but are not shown.
func (f *flow) skip(n int64) {
	if f.at == atBody || f.at == inBody {
		f.consume(n)
		return
	}
	*f = flow{at: inBody, left: math.MaxInt64} // where it ends will not be recognised
}

// startLine masks the start of a message at i: PROXY line and FRAME prefix if
// there are, then the request or status line. It returns where the header goes
// on; false if no message starts at i.
func (r *Redactor) startLine(st *connState, f *flow, i int) (int, bool) {
	c, n := &r.c, len(r.c.src)
	begin := i
	if c.at(i, "PROXY ") {
		end := c.index(i, n, '\n')
		if end < 0 {
			end = n - 1
		}
		text := bytes.TrimRight(c.src[i:end+1], "\r\n")
		if setProxy.all(text, 128) {
			c.keep(i, i+len(text))
		}
		c.keep(i+len(text), end+1)
		i = end + 1
	}
	if c.at(i, "FRAME ") && i+18 <= n && setDigit.all(c.src[i+6:i+18], 12) {
		c.keep(i, i+18)
		i += 18
	}
	if i == n {
		return i, i > begin // the line that belongs to it comes next
	}
	end := c.index(i, n, '\n')
	whole := end >= 0
	if !whole {
		end = n
	}
	text := bytes.TrimRight(c.src[i:end], "\r")
	if i+len(text) < end {
		c.keep(i+len(text), end)
	}
	switch {
	case c.at(i, "HTTP/1."):
		r.statusLine(i, i+len(text))
		st.pending, st.reply = st.reply, replyDeny
		*f = flow{reply: true}
	case isMethod(text):
		st.class = r.requestLine(i, i+len(text), whole)
		st.pending, st.reply = replyDeny, replyDeny
		*f = flow{}
	default:
		return i, i > begin
	}
	f.at, f.length = inHeader, -1
	if !whole {
		f.line = lineMask
		return n, true
	}
	c.keep(end, end+1)
	return end + 1, true
}

// statusLine keeps version, status and a harmless reason.
func (r *Redactor) statusLine(i, end int) {
	c := &r.c
	head := min(i+len("HTTP/1.1 200"), end)
	c.keep(i, head)
	if setProxy.all(c.src[head:end], 64) {
		c.keep(head, end)
	}
}

var methods = []string{"POST ", "GET ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "CONNECT ", "PATCH "}

func isMethod(b []byte) bool {
	for _, m := range methods {
		if len(b) >= len(m) && string(b[:len(m)]) == m {
			return true
		}
	}
	return false
}

// requestLine keeps the method, a path of harmless bytes, task references of
// the query as far as taskRef tells, and the version.
func (r *Redactor) requestLine(i, end int, whole bool) class {
	c := &r.c
	t := c.index(i, end, ' ') + 1
	c.keep(i, t)
	target := c.index(t, end, ' ')
	if target < 0 {
		target = end
	} else if v := len(" HTTP/1.1"); end-target <= v && string(c.src[target:end]) == " HTTP/1.1"[:end-target] || c.at(target, " HTTP/1.0") && end-target == v {
		c.keep(target, end)
	}
	path := t
	for path < target && setPath[c.src[path]] {
		path++
	}
	query := path
	if path < target && c.index(path, path+1, '?') < 0 || path == t || c.src[t] != '/' {
		return classOpaque // escapes, absolute form, …: not ours to understand
	}
	c.keepText(t, path)
	for query < target {
		q := query + 1
		next := c.index(q, target, '&')
		if next < 0 {
			next = target
		}
		for _, key := range [...]string{"task_id=", "subtask_of="} {
			if c.at(q, key) && q+len(key) <= next {
				v := q + len(key)
				c.keep(query, v)
				c.keep(v, v+taskRef(c.src[v:next]))
			}
		}
		query = next
	}
	if !whole && path == end {
		return classUnknown // the path may go on
	}
	return classOf(c.src[t:path])
}

var (
	rpcPaths    = []string{"/", "/RPC2", "/jsonrpc", "/json"}
	socketPaths = []string{"/var/lib/xcp/", "/var/xapi/"} // what daemons ask each other for on their sockets: the socket's own path
	switchPaths = []string{"/transfer", "/request/", "/response/", "/login/", "/persistent/", "/transient/", "/ack/"}
)

// classOf returns what the path says about bodies.
func classOf(path []byte) class {
	for _, p := range rpcPaths {
		if string(path) == p {
			return classRPC
		}
	}
	for _, p := range socketPaths {
		if len(path) >= len(p) && string(path[:len(p)]) == p {
			return classRPC
		}
	}
	for _, p := range switchPaths {
		if len(path) >= len(p) && string(path[:len(p)]) == p {
			return classSwitch
		}
	}
	if string(path) == "/cli" {
		return classCommand
	}
	return classOpaque
}

// header masks header lines from i on and returns where the body begins, or
// the end.
func (r *Redactor) header(f *flow, i int) int {
	c, n := &r.c, len(r.c.src)
	for i < n {
		end := c.index(i, n, '\n')
		whole := end >= 0
		if !whole {
			end = n
		}
		text := bytes.TrimRight(c.src[i:end], "\r")
		stop := i + len(text)
		c.keep(stop, end)
		if whole {
			c.keep(end, end+1)
			end++
		}
		switch f.line {
		case lineNew:
			switch {
			case len(text) == 0 && whole:
				f.at = atBody
				return end
			case len(text) == 0:
				f.line = lineEndOfCR
				return n
			}
			f.line = r.headerLine(f, i, stop)
		case lineEndOfCR:
			if len(text) == 0 && whole {
				f.line, f.at = lineNew, atBody
				return end
			}
			f.line = lineMask
		case lineTrace:
			c.keep(i, i+setTrace.run(text))
		case lineLength:
			f.addLength(text)
			c.keep(i, i+setDigit.run(text))
		}
		if whole {
			f.line = lineNew
		}
		i = end
	}
	return n
}

// headerLine masks the value of one header line by its rule and returns how
// the line goes on if it was cut.
func (r *Redactor) headerLine(f *flow, i, end int) line {
	c := &r.c
	colon := c.index(i, end, ':')
	if colon < 0 || !setToken.all(c.src[i:colon], 64) {
		return lineMask
	}
	v := c.spaces(colon+1, end)
	c.keep(i, v)
	value := c.src[v:end]
	switch headerRule(c.src[i:colon]) {
	case ruleText:
		c.keepText(v, end)
	case ruleTrace:
		if k := setTrace.run(value); k == len(value) {
			c.keep(v, end)
			return lineTrace
		}
	case ruleNumber:
		k := setDigit.run(value)
		c.keep(v, v+k)
		if colon-i == len("content-length") && k == len(value) {
			f.length = 0
			f.addLength(value)
			return lineLength
		}
	case ruleTask:
		c.keep(v, v+taskRef(value))
	}
	return lineMask
}

// addLength takes more digits of content-length.
func (f *flow) addLength(b []byte) {
	for _, x := range b {
		if !setDigit[x] || f.length > math.MaxInt64/100 {
			return
		}
		f.length = f.length*10 + int64(x-'0')
	}
}

// body masks the part of a body that stands in [i, end).
func (r *Redactor) body(st *connState, f *flow, i, end int) {
	if !st.readable() {
		if st.class == classCommand && f.at == atBody {
			r.command(i, end)
		}
		return
	}
	if f.at == inBody {
		if st.class != classUnknown {
			r.islands(i, end)
		}
		return
	}
	r.reply, r.request, r.method, r.messages = st.pending, replyDeny, false, false
	st.pending = replyDeny
	if st.class == classSwitch {
		r.reply = replyTask
	}
	c := &r.c
	j := c.spaces(i, end)
	c.keep(i, j)
	if j < end {
		switch c.src[j] {
		case '{', '[':
			r.json(j, end, st.class)
		case '<':
			r.xml(j, end)
		default:
			if st.class == classSwitch && setWord.all(c.src[i:end], 128) {
				c.keep(i, end) // the name of a queue
			}
		}
	}
	if r.method {
		st.reply = r.request
	}
	if st.class == classUnknown { // its request was before the probe
		switch {
		case r.messages:
			st.class = classSwitch
		case r.method:
			st.class = classRPC
		}
	}
}

// command keeps the first line of a /cli body, with its end, if it is a command
// word.
func (r *Redactor) command(i, end int) {
	c := &r.c
	stop := c.index(i, end, '\n') + 1
	if stop == 0 {
		stop = end
	}
	if word := bytes.TrimRight(c.src[i:stop], "\r\n"); setCommand.all(word, 64) {
		c.keep(i, stop)
	}
}
