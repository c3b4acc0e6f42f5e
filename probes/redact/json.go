package redact

// maxDepth bounds the nesting of values that is followed.
const maxDepth = 48

// policy says what of a JSON value is kept. Punctuation, true, false and null
// are kept always; numbers become others of the same length.
type policy uint8

const (
	keepNone    policy = iota
	keepRPC            // a request or reply
	keepSwitch         // that, or what message-switch and its clients say
	keepMethod         // a method name
	keepID             // the id of an RPC
	keepParams         // debug_info and identifiers inside
	keepIdent          // a UUID or a task id
	keepResult         // what r.reply allows
	keepError          // failure codes
	keepCode           // one failure code
	keepDebug          // debug_info
	keepWords          // queue names and numbers
	keepMessage        // messages of /transfer
	keepPayload        // JSON in a string
	keepOp             // an operation of xenopsd, as it logs it: its name comes first
	keepOpArg          // an argument of an operation
)

// members says how the value of an object's member is kept, by the object's
// own policy and the member's name. The name of a member that is not listed is
// masked, and its value gets the policy of other.
func members(p policy, name []byte) (policy, bool) {
	switch p {
	case keepRPC, keepSwitch:
		switch string(name) {
		case "method":
			return keepMethod, true
		case "id", "jsonrpc":
			return keepID, true
		case "params":
			return keepParams, true
		case "result":
			return keepResult, true
		case "error":
			return keepError, true
		}
		if p == keepRPC {
			break
		}
		switch string(name) {
		case "messages":
			return keepMessage, true
		case "next", "from", "timeout", "queues":
			return keepWords, true
		}
	case keepParams:
		switch string(name) {
		case "debug_info", "dbg":
			return keepDebug, true
		case "id", "vm", "vm_id", "sr", "vdi", "task", "task_id":
			return keepIdent, true
		}
		return keepParams, false
	case keepError:
		switch string(name) {
		case "code":
			return keepWords, true
		case "message":
			return keepCode, true
		case "data":
			return keepError, true
		}
	case keepMessage:
		switch string(name) {
		case "payload":
			return keepPayload, true
		case "kind":
			return keepWords, true
		}
	}
	return keepNone, false
}

// json masks the document that starts at i, on a connection of class of.
func (r *Redactor) json(i, end int, of class) {
	d := document{r: r, c: &r.c, end: end}
	p := keepSwitch
	switch array := r.c.at(i, "["); {
	case array && of == classSwitch:
		p = keepWords // [["queue",number]]
	case array:
		p = keepNone
	case of == classRPC:
		p = keepRPC
	}
	d.value(i, 0, p)
}

// document is a JSON text, possibly inside the strings of others: at level n
// a quote is written as 2^n - 1 backslashes and '"'.
type document struct {
	r     *Redactor
	c     *canvas
	end   int
	level uint
}

// quote returns the place after a quote of this level that stands at i, or -1.
func (d *document) quote(i int) int {
	k := 1<<d.level - 1
	if i+k >= d.end || d.c.src[i+k] != '"' {
		return -1
	}
	for j := i; j < i+k; j++ {
		if d.c.src[j] != '\\' {
			return -1
		}
	}
	return i + k + 1
}

// closing looks for the quote that ends the string whose text starts at i. It
// returns the text's end and whether the quote is there; false when the text
// is cut by the end of the document, or by a quote of a lower level, which no
// string of this level can hold.
func (d *document) closing(i int) (int, bool) {
	mod := 1 << (d.level + 1)
	for run := 0; i < d.end; i++ {
		switch d.c.src[i] {
		case '\\':
			run++
			continue
		case '"':
			switch run % mod {
			case mod/2 - 1:
				return i - (mod/2 - 1), true
			case mod - 1: // a quote within the text
			default:
				return i - run, false
			}
		}
		run = 0
	}
	return d.end, false
}

// value masks the value at i and returns the place after it, or -1 when the
// text is not, or no longer, what JSON allows; then the rest stays masked.
func (d *document) value(i, depth int, p policy) int {
	c := d.c
	if depth > maxDepth {
		return -1
	}
	if i = d.spaces(i); i >= d.end {
		return -1
	}
	b := c.src[i]
	if p == keepResult && (b == '{' || b == '[') {
		if p = keepNone; d.r.reply == replyTask {
			p = keepParams
		}
	}
	switch {
	case b == '{':
		return d.object(i, depth, p)
	case b == '[':
		return d.array(i, depth, p)
	case b == '"' || b == '\\':
		return d.text(i, p)
	case b == '-' || setDigit[b]:
		j := i + 1
		for j < d.end && (setDigit[c.src[j]] || c.src[j] == '.' || c.src[j] == '-' || c.src[j] == '+' || c.src[j] == 'e' || c.src[j] == 'E') {
			j++
		}
		if (p == keepID || p == keepWords || p == keepMessage) && j-i <= 20 {
			c.keep(i, j)
		} else {
			c.number(i, j)
		}
		return j
	default:
		for _, w := range [...]string{"true", "false", "null"} {
			if c.at(i, w) && i+len(w) <= d.end {
				c.keep(i, i+len(w))
				return i + len(w)
			}
		}
	}
	return -1
}

// spaces keeps and skips white space.
func (d *document) spaces(i int) int {
	j := d.c.spaces(i, d.end)
	d.c.keep(i, j)
	return j
}

func (d *document) object(i, depth int, p policy) int {
	c := d.c
	c.keep(i, i+1)
	i = d.spaces(i + 1)
	if i < d.end && c.src[i] == '}' {
		c.keep(i, i+1)
		return i + 1
	}
	for i < d.end {
		name := d.quote(i)
		if name < 0 {
			return -1
		}
		c.keep(i, name)
		stop, ok := d.closing(name)
		if !ok {
			return -1
		}
		q, known := members(p, c.src[name:stop])
		if q == keepMessage && p == keepSwitch {
			d.r.messages = true
		}
		if known {
			c.keep(name, stop)
		}
		i = d.quote(stop)
		c.keep(stop, i)
		if i = d.spaces(i); i >= d.end || c.src[i] != ':' {
			return -1
		}
		c.keep(i, i+1)
		if i = d.value(i+1, depth+1, q); i < 0 {
			return -1
		}
		if i = d.spaces(i); i >= d.end {
			return -1
		}
		switch c.src[i] {
		case ',':
			c.keep(i, i+1)
			i = d.spaces(i + 1)
		case '}':
			c.keep(i, i+1)
			return i + 1
		default:
			return -1
		}
	}
	return -1
}

func (d *document) array(i, depth int, p policy) int {
	c := d.c
	c.keep(i, i+1)
	i = d.spaces(i + 1)
	if i < d.end && c.src[i] == ']' {
		c.keep(i, i+1)
		return i + 1
	}
	for first := true; i < d.end; first = false {
		q := p
		switch p {
		case keepError:
			if !first {
				q = keepNone // parameters of the failure
			}
		case keepMethod, keepID, keepIdent, keepCode, keepDebug, keepPayload:
			q = keepNone // never an array
		case keepOp, keepOpArg:
			if q = keepOp; !first {
				q = keepOpArg
			}
		}
		next := d.value(i, depth+1, q)
		if next < 0 {
			return -1
		}
		if i = d.spaces(next); i >= d.end {
			return -1
		}
		switch c.src[i] {
		case ',':
			c.keep(i, i+1)
			i = d.spaces(i + 1)
		case ']':
			c.keep(i, i+1)
			return i + 1
		default:
			return -1
		}
	}
	return -1
}

// text masks the string at i.
func (d *document) text(i int, p policy) int {
	c := d.c
	begin := d.quote(i)
	if begin < 0 {
		return -1
	}
	c.keep(i, begin)
	if p == keepPayload && d.level < 3 {
		in := document{r: d.r, c: c, end: d.end, level: d.level + 1}
		saved := d.r.reply
		d.r.reply = replyTask
		if in.spaces(begin) < d.end && c.src[begin] == '{' {
			in.value(begin, 0, keepRPC)
		}
		d.r.reply = saved
	}
	end, ok := d.closing(begin)
	b := c.src[begin:end]
	switch p {
	case keepMethod:
		if setMethod.all(b, 128) {
			c.keep(begin, end)
			d.r.sawMethod(b)
		}
	case keepID:
		if setMethod.all(b, 36) && taskRef(b) == 0 {
			c.keep(begin, end)
		}
	case keepIdent:
		if ok && isIdent(b) {
			c.keep(begin, end)
		}
	case keepResult:
		switch d.r.reply {
		case replyAsync:
			c.keep(begin, begin+taskRef(b))
		case replyTask:
			if ok && isIdent(b) {
				c.keep(begin, end)
			}
		}
	case keepError, keepCode:
		if ok && setCode.all(b, 64) {
			c.keep(begin, end)
		}
	case keepParams: // it may be a log tag, which some daemons take without a name
		if ok {
			c.keep(begin+taskID(b), end)
		}
	case keepDebug:
		d.r.sawDebug()
		if len(b) <= maxDebug {
			c.keepText(begin, end)
		}
	case keepWords, keepMessage:
		if isSwitchWord(b) {
			c.keep(begin, end)
		}
	case keepOp:
		if ok && (isOpName(b) || isOpArg(b)) {
			c.keep(begin, end)
		}
	case keepOpArg:
		if ok && isOpArg(b) {
			c.keep(begin, end)
		}
	}
	if !ok {
		return -1
	}
	next := d.quote(end)
	c.keep(end, next)
	return next
}

// maxDebug bounds a debug_info that is kept: a tag of nested atoms, a
// traceparent and baggage.
const maxDebug = 4096

// sawMethod notes what the request's method allows its reply.
func (r *Redactor) sawMethod(name []byte) {
	if r.method {
		return
	}
	r.method = true
	for _, p := range [...]string{"Async.", "InternalAsync."} {
		if len(name) > len(p) && string(name[:len(p)]) == p {
			r.request = replyAsync
		}
	}
}

// sawDebug notes that the request is one between toolstack services.
func (r *Redactor) sawDebug() {
	if r.request == replyDeny {
		r.request = replyTask
	}
}
