package redact

import (
	"bytes"

	"github.com/xenserver/dtagent/probes/event"
)

// logLine masks the log line of the canvas. Kept are the part before the
// brackets, the brackets (scrubbed), and of the message what one of the
// anchors below allows; any other message is masked.
//
//	<175>Aug 21 02:00:23 xenopsd-xc: [debug|<traceparent>|31 |<tag>|xenops_server] Task 51 reference …
func (r *Redactor) logLine() {
	c, n := &r.c, len(r.c.src)
	open := c.index(0, min(n, 128), '[')
	if open < 0 || n == 0 || c.src[0] != '<' {
		return
	}
	shut := logBracket(c.src[open:])
	if shut < 0 {
		c.keepText(0, open)
		return
	}
	shut += open
	c.keepText(0, shut+1)
	i := shut + 1
	if c.at(i, " ") {
		c.keep(i, i+1)
		i++
	}
	r.logMessage(i, n)
}

// logBracket returns where the bracket part ends: at the first ']' that
// follows '|' and a module's name, since tags may hold brackets and bars.
func logBracket(b []byte) int {
	bar := -1
	for i, x := range b {
		switch {
		case x == '|':
			bar = i
		case x == ']' && bar >= 0 && i > bar+1 && (i+1 == len(b) || b[i+1] == ' '):
			return i
		case !setKey[x]:
			bar = -1
		}
	}
	return -1
}

// logMessage keeps the messages that carry the work of a task from thread to
// thread.
func (r *Redactor) logMessage(i, n int) {
	c := &r.c
	switch {
	case c.at(i, "Performing: "):
		r.logOp(i, i+len("Performing: "), n)
	case c.at(i, "Queue.pop returned "):
		r.logOp(i, i+len("Queue.pop returned "), n)
	case c.at(i, "Queue.push "):
		j := r.logOp(i, i+len("Queue.push "), n)
		for _, onto := range [...]string{" onto redirected ", " onto "} {
			if j > 0 && c.at(j, onto) {
				v := j + len(onto)
				c.keep(j, v)
				if k := setWord.run(c.src[v:n]); k <= 128 && taskRef(c.src[v:n]) == 0 {
					c.keep(v, v+k)
				}
				return
			}
		}
	case c.at(i, "Task "):
		id := i + len("Task ")
		j := id + setDigit.run(c.src[id:n])
		if j == id {
			return
		}
		switch {
		case c.at(j, " reference "):
			k := bytes.Index(c.src[j:n], []byte(": ["))
			if k < 0 {
				c.keepText(i, j+len(" reference "))
				return
			}
			c.keepText(i, j+k)
			r.logOp(j+k, j+k+2, n)
		case c.at(j, " completed; duration = "):
			v := j + len(" completed; duration = ")
			c.keep(i, v+setNumber.run(c.src[v:n]))
		case c.at(j, " failed; "):
			r.logFailure(i, j+len(" failed; "), n)
		}
	case c.at(i, "TASK.signal "):
		// TASK.signal 6 = ["Pending",0.2]: how far a task of xenopsd is
		v := i + len("TASK.signal ")
		v += setDigit.run(c.src[v:n])
		if pending := ` = ["Pending",`; c.at(v, pending) {
			v += len(pending)
			v += setNumber.run(c.src[v:n])
			if c.at(v, "]") {
				v++
			}
			c.keep(i, v)
		}
	case c.at(i, "spawning a new thread to handle the current task (trackid="):
		v := i + len("spawning a new thread to handle the current task (trackid=")
		c.keep(i, v)
		v += setHex.run(c.src[v:n])
		if c.at(v, ")") {
			c.keep(i, v+1)
		}
	case c.at(i, "task "):
		// task Async.VM.start R:… (uuid:…) created (trackid=…) by task D:…
		// task … forwarded …
		for _, word := range [...]string{" created ", " forwarded "} {
			k := bytes.Index(c.src[i:n], []byte(word))
			if k < 0 {
				continue
			}
			stop := i + k + len(word)
			if setTaskText.all(c.src[i:stop], 256) {
				c.keepText(i, stop)
				c.keepText(stop, stop+setTaskText.run(c.src[stop:n]))
			}
			return
		}
	default:
		r.logObjects(i, n)
	}
}

// logObjects keeps of a line that says what a call works at the method and the uuids,
// but not the names in brackets behind them:
//
//	VM.pool_migrate: VM = '<uuid> (name)'; host = '<uuid> (name)'
func (r *Redactor) logObjects(i, n int) {
	c := &r.c
	j := i + setCode.run(c.src[i:n])
	if j == i || j-i > 64 || c.src[i] < 'A' || c.src[i] > 'Z' || !c.at(j, ": ") || bytes.IndexByte(c.src[i:j], '.') < 0 {
		return
	}
	j += len(": ")
	for range 4 {
		v := 0
		for _, kind := range [...]string{"VM = '", "VDI = '", "SR = '"} {
			if c.at(j, kind) {
				v = j + len(kind)
			}
		}
		if v > 0 && v+36 <= n && event.IsUUID(c.src[v:v+36]) && (c.at(v+36, "'") || c.at(v+36, " ")) {
			c.keep(i, min(v+37, n))
		}
		k := bytes.Index(c.src[j:n], []byte("; "))
		if k < 0 {
			return
		}
		i = j + k
		j = i + len("; ")
	}
}

var (
	setNumber   = chars(digits + ".")
	setTaskText = chars(digits + letters + "_.:-() =/,'+#") // no brackets, bars or quotes
)

// logOp keeps the words [i, j), then the operation at j. It returns the place
// after it, -1 if it was cut or is no JSON.
func (r *Redactor) logOp(i, j, n int) int {
	r.c.keep(i, j)
	d := document{r: r, c: &r.c, end: n}
	return d.value(j, 0, keepOp)
}

// logFailure keeps the exception's name and its code, the first string of what
// follows:
//
//	exception = ["Failed_to_contact_remote_service","…"]
//	Xenops_interface.Xenopsd_error([S(Failed_to_contact_remote_service);S(…)])
func (r *Redactor) logFailure(i, j, n int) {
	c := &r.c
	c.keep(i, j)
	if c.at(j, "exception = ") {
		c.keep(j, j+len("exception = "))
		j += len("exception = ")
	}
	if j < n && c.src[j] == '[' {
		d := document{r: r, c: c, end: n}
		d.value(j, 0, keepError)
		return
	}
	name := setCode.run(c.src[j:n])
	if name == 0 || name > 64 {
		return
	}
	c.keep(j, j+name)
	if j += name; c.at(j, "([S(") {
		j += len("([S(")
		if code := setCode.run(c.src[j:n]); code <= 64 && c.at(j+code, ")") {
			c.keep(j-len("([S("), j+code+1)
		}
	}
}

// isOpName tells whether b can be the name of an operation: "VM_start".
func isOpName(b []byte) bool {
	return len(b) > 0 && 'A' <= b[0] && b[0] <= 'Z' && setOp.all(b, 48)
}

// isOpArg tells whether a string of an operation is an object, a device, a
// hook or the label of parallel atoms: a UUID, "xvda", "0", "VM_pre_start",
// "VBD.plug vm=<uuid>".
func isOpArg(b []byte) bool {
	switch {
	case event.IsUUID(b), setDigit.all(b, 5):
		return true
	case len(b) <= 5:
		return setDevice.all(b, 5)
	case len(b) > 128:
		return false
	case string(b[:3]) == "VM_":
		return setHook.all(b[3:], 24)
	}
	k := bytes.IndexByte(b, ' ')
	if k <= 0 {
		return false
	}
	rest := b[k+1:]
	return setCode.all(b[:k], 64) && len(rest) == 3+36 && equalFold(rest[:3], "vm=") && event.IsUUID(rest[3:])
}

var (
	setDevice = chars(digits + lower)
	setHook   = chars(lower + "_")
)
