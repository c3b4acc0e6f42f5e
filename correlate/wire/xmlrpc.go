package wire

import "bytes"

// xmlMethod reads methodName, the first child of methodCall.
func (d *Decoder) xmlMethod(c *Call, body []byte) {
	text, ok := xmlEnter(body, "methodCall")
	if ok {
		text, ok = xmlEnter(text, "methodName")
	}
	end := bytes.IndexByte(text, '<')
	if !ok || end < 0 {
		c.Cut = text == nil || ok
		return
	}
	d.setMethod(c, d.xmlText(text[:end]))
}

// xmlEnter goes over what may stand before an element, white space, comments,
// declarations, and over the element's start tag. Where text is cut before that
// the result is nil; where another element stands it is the text from there.
func xmlEnter(text []byte, name string) (content []byte, ok bool) {
	for {
		text = bytes.TrimLeft(text, " \t\r\n")
		var end string
		switch {
		case bytes.HasPrefix(text, []byte("<?")):
			end = "?>"
		case bytes.HasPrefix(text, []byte("<!--")):
			end = "-->"
		case bytes.HasPrefix(text, []byte("<!")):
			end = ">"
		case len(text) < len(name)+2:
			return nil, false
		case text[0] != '<' || string(text[1:1+len(name)]) != name:
			return text, false
		default:
			i := bytes.IndexByte(text, '>')
			if i < 0 {
				return nil, false
			}
			return text[i+1:], true
		}
		i := bytes.Index(text, []byte(end))
		if i < 0 {
			return nil, false
		}
		text = text[i+len(end):]
	}
}

// xmlMember returns the text behind the name of a struct's member, where its
// value begins; nil if it is not there.
func xmlMember(text []byte, name string) []byte {
	for {
		i := bytes.Index(text, []byte("<name>"))
		if i < 0 {
			return nil
		}
		text = text[i+len("<name>"):]
		if len(text) > len(name) && string(text[:len(name)]) == name && text[len(name)] == '<' {
			return text[len(name):]
		}
	}
}

// xmlLeaf returns the first text in the value that text begins in, or before:
// its own, or that of an array's first element. whole is false when the text
// ends before the value's text does.
func xmlLeaf(text []byte) (leaf []byte, whole bool) {
	opened := false
	for {
		trimmed := bytes.TrimLeft(text, " \t\r\n")
		if len(trimmed) == 0 {
			return nil, false
		}
		if trimmed[0] != '<' {
			end := bytes.IndexByte(text, '<')
			if end < 0 {
				return text, false
			}
			return text[:end], true
		}
		end := bytes.IndexByte(trimmed, '>')
		if end < 0 {
			return nil, false
		}
		tag := trimmed[1:end]
		if len(tag) > 0 && tag[0] == '/' {
			if opened {
				return nil, true // an empty value
			}
		} else {
			opened = true
			if len(tag) > 0 && tag[len(tag)-1] == '/' {
				return nil, true
			}
		}
		text = trimmed[end+1:]
	}
}

// xmlString tells whether the value that text begins in, or before, is a string:
// the one type whose tag may be left out.
func xmlString(text []byte) bool {
	for {
		text = bytes.TrimLeft(text, " \t\r\n")
		tag, rest, ok := bytes.Cut(text, []byte{'>'})
		switch {
		case len(text) == 0 || text[0] != '<':
			return true
		case !ok:
			return false
		case string(tag) != "</name" && string(tag) != "<value":
			return string(tag) == "<string" || string(tag) == "<string/" || bytes.HasPrefix(tag, []byte("</"))
		}
		text = rest
	}
}

// xmlDebugInfo finds debug_info or dbg: a member of the struct that is the
// first parameter, or the first parameter that is none. '<' in values is
// escaped, so no value can pass for a member.
func (d *Decoder) xmlDebugInfo(c *Call, head, tail []byte) {
	for _, text := range [...][]byte{head, tail} {
		for _, name := range [...]string{"debug_info", "dbg"} {
			if value := xmlMember(text, name); value != nil {
				if leaf, whole := xmlLeaf(value); whole {
					c.DebugInfo = d.debugInfo(d.xmlText(leaf))
					return
				}
			}
		}
	}
	for range 2 {
		i := bytes.Index(head, []byte("<param>"))
		if i < 0 {
			return
		}
		head = head[i+len("<param>"):]
		value, _ := xmlEnter(head, "value")
		if _, named := xmlEnter(value, "struct"); named {
			continue
		}
		if leaf, whole := xmlLeaf(head); whole && leaf != nil {
			c.DebugInfo = d.debugInfo(d.xmlText(leaf))
		}
		return
	}
}

// xmlReply reads Status, and ErrorDescription or Value; or a fault.
func (d *Decoder) xmlReply(r *Reply, body []byte) {
	text, ok := xmlEnter(body, "methodResponse")
	if !ok {
		return
	}
	if fault, ok := xmlEnter(text, "fault"); ok {
		r.Status = Failed
		if leaf, whole := xmlLeaf(xmlMember(fault, "faultString")); whole {
			r.Code = d.xmlText(bytes.TrimSpace(leaf))
		}
		return
	}
	status, whole := xmlLeaf(xmlMember(text, "Status"))
	switch {
	case !whole:
	case string(status) == "Success":
		r.Status = Succeeded
		member := xmlMember(text, "Value")
		if value, whole := xmlLeaf(member); xmlString(member) && (whole || bytes.HasPrefix(value, opaqueRef)) {
			r.Value = d.xmlText(value)
		}
	case string(status) == "Failure":
		r.Status = Failed
		if code, whole := xmlLeaf(xmlMember(text, "ErrorDescription")); whole {
			r.Code = d.xmlText(code)
		}
	}
}
