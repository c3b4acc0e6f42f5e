package redact

// tags lists the elements of XML-RPC; any other markup ends what is kept.
var tags = []string{
	"methodCall", "methodResponse", "methodName", "params", "param", "value", "fault",
	"struct", "member", "name", "array", "data",
	"string", "int", "i4", "i8", "boolean", "double", "dateTime.iso8601", "base64", "nil", "ex:nil",
}

const maxTag = len("/dateTime.iso8601/")

// xml masks the XML-RPC document that starts at i: tags and blank text stay,
// other text is masked but for method names, failure codes, debug_info, and
// what r.reply allows of the result.
func (r *Redactor) xml(i, end int) {
	c := &r.c
	var (
		response bool
		begun    bool
		inMethod bool
		inName   bool
		structs  int        // nesting
		next     = keepNone // of the value that follows
	)
	if c.at(i, "<?xml") {
		stop := c.index(i, min(end, i+128), '>')
		if stop < 0 {
			return
		}
		c.keep(i, stop+1)
		i = stop + 1
	}
	for i < end {
		if c.src[i] != '<' {
			stop := c.index(i, end, '<')
			cut := stop < 0
			if cut {
				stop = end
			}
			if c.spaces(i, stop) == stop {
				c.keep(i, stop)
				i = stop
				continue
			}
			switch {
			case inMethod && !r.method && !response:
				if b := c.src[i:stop]; setMethod.all(b, 128) {
					c.keep(i, stop)
					r.sawMethod(b)
				}
			case inName:
				next = keepNone
				if !cut {
					if next = r.memberName(c.src[i:stop], response, structs); next != keepNone {
						c.keep(i, stop)
					}
				}
			case next == keepNone && !response && structs == 0 && !cut: // a parameter without a name
				c.keep(i+taskID(c.src[i:stop]), stop)
			default:
				r.xmlValue(i, stop, cut, next)
				next = keepNone
			}
			i = stop
			continue
		}
		stop := c.index(i, min(end, i+maxTag+2), '>')
		if stop < 0 {
			return
		}
		name, closes := c.src[i+1:stop], false
		if len(name) > 0 && name[0] == '/' {
			name, closes = name[1:], true
		} else if len(name) > 0 && name[len(name)-1] == '/' {
			name, closes = name[:len(name)-1], true
		}
		if !isTag(name) {
			return
		}
		if !begun && string(name) != "methodCall" && string(name) != "methodResponse" {
			return // not the start of a document
		}
		begun = true
		c.keep(i, stop+1)
		switch string(name) {
		case "methodResponse":
			response = true
		case "methodName":
			inMethod = !closes
		case "name":
			inName = !closes
		case "member":
			next = keepNone
		case "struct":
			if structs++; closes {
				structs -= 2
			}
		}
		i = stop + 1
	}
}

func isTag(b []byte) bool {
	for _, t := range tags {
		if string(b) == t {
			return true
		}
	}
	return false
}

// memberName returns how the value of a struct's member is kept; keepNone: it
// is masked, and so is its name.
func (r *Redactor) memberName(b []byte, response bool, structs int) policy {
	if response {
		if structs != 1 {
			return keepNone // data of the result
		}
		switch string(b) {
		case "Status", "ErrorDescription", "faultString":
			return keepCode
		case "Value":
			return keepResult
		case "faultCode":
			return keepWords
		}
		return keepNone
	}
	switch string(b) {
	case "debug_info", "dbg":
		return keepDebug
	case "id", "vm", "vm_id", "sr", "vdi", "task", "task_id":
		return keepIdent
	}
	return keepNone
}

// xmlValue masks the text of a value.
func (r *Redactor) xmlValue(i, end int, cut bool, p policy) {
	c := &r.c
	b := c.src[i:end]
	switch p {
	case keepCode:
		if !cut && setCode.all(b, 64) {
			c.keep(i, end)
		}
	case keepWords:
		if !cut && setDigit.all(b, 10) {
			c.keep(i, end)
		}
	case keepIdent:
		if !cut && isIdent(b) {
			c.keep(i, end)
		}
	case keepDebug:
		r.sawDebug()
		if len(b) <= maxDebug {
			c.keepText(i, end)
		}
	case keepResult:
		switch r.reply {
		case replyAsync:
			c.keep(i, i+taskRef(b))
		case replyTask:
			if !cut && isIdent(b) {
				c.keep(i, end)
			}
		}
	}
}
