package wire

import "bytes"

// Head is the head of one HTTP/1.x message. Its slices are parts of the bytes
// given to Reader.Next or of the Reader's buffer: valid until its next call.
// A header that was not there is nil.
type Head struct {
	Reply  bool   // a status line was read, not a request line
	Method []byte // of the request line, as sent
	Path   []byte // of the request line, without scheme, host, query and fragment; not decoded
	Status int    // of the status line
	Minor  uint8  // the x of HTTP/1.x
	Framed bool   // came behind "FRAME " and its length

	ContentLength int64 // -1: not given, or not a number
	Chunked       bool  // transfer-encoding: chunked
	KeepAlive     bool  // by xapi's rule: 1.1 unless "close", 1.0 only with "keep-alive"

	Traceparent []byte // the last one of them
	Tracestate  []byte // all of them in their order, joined by ','
	Baggage     []byte // all of them, the last one first as in xapi, joined by ';'
	UserAgent   []byte
	Host        []byte
	ContentType []byte
	Dbg         []byte // x-http-other-config-dbg: replaces the task's log tag
	Task        TaskID // task-id: the caller's task goes on here
	SubtaskOf   TaskID // subtask-of
}

// parse reads the head in text, which may lack its end. It is false when the
// first line is not that of an HTTP/1.x message. Joined headers go to join,
// which is returned.
func (h *Head) parse(text, join []byte) ([]byte, bool) {
	framed := h.Framed
	*h = Head{ContentLength: -1, Framed: framed}
	line, text := cutLine(text)
	if !h.firstLine(line) {
		return join, false
	}
	h.KeepAlive = h.Minor > 0
	for len(text) > 0 {
		line, text = cutLine(text)
		if i := bytes.IndexByte(line, ':'); i > 0 {
			join = h.header(line[:i], bytes.TrimSpace(line[i+1:]), join)
		}
	}
	return join, true
}

// cutLine returns the first line without its end, and what follows it.
func cutLine(text []byte) (line, rest []byte) {
	i := bytes.IndexByte(text, '\n')
	if i < 0 {
		return text, nil
	}
	line, rest = text[:i], text[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest
}

func (h *Head) firstLine(line []byte) bool {
	first, rest := cutField(line)
	second, rest := cutField(rest)
	if version, ok := bytes.CutPrefix(first, http1); ok && len(version) == 1 {
		h.Reply, h.Minor = true, version[0]-'0'
		h.Status = int(parseUint(second, 999))
		return h.Minor <= 9 && len(second) == 3 && h.Status >= 100
	}
	third, rest := cutField(rest)
	version, ok := bytes.CutPrefix(third, http1)
	if !ok || len(version) != 1 || version[0]-'0' > 9 || len(bytes.TrimSpace(rest)) > 0 {
		return false
	}
	h.Method, h.Path, h.Minor = first, pathOf(second), version[0]-'0'
	return true
}

var http1 = []byte("HTTP/1.")

// cutField returns the first field of a line whose fields stand between blanks.
func cutField(line []byte) (field, rest []byte) {
	line = bytes.TrimLeft(line, " \t")
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		return line[:i], line[i:]
	}
	return line, nil
}

// pathOf returns the path of a request target.
func pathOf(target []byte) []byte {
	if i := bytes.Index(target, []byte("://")); i > 0 && target[0] != '/' {
		target = target[i+3:]
		if i = bytes.IndexByte(target, '/'); i < 0 {
			return nil
		}
		target = target[i:]
	}
	if i := bytes.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	if path := bytes.TrimRight(target, "*"); len(path) > 0 {
		target = path // the query was masked, with its '?'
	}
	return target
}

// header notes one header. Names in any case are known.
func (h *Head) header(name, value, join []byte) []byte {
	var lower [len("x-http-other-config-dbg")]byte
	if len(name) > len(lower) {
		return join
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	switch string(lower[:len(name)]) {
	case "traceparent":
		h.Traceparent = value
	case "tracestate":
		if h.Tracestate == nil {
			h.Tracestate = value
			break
		}
		start := len(join)
		join = append(append(append(join, h.Tracestate...), ','), value...)
		h.Tracestate = join[start:]
	case "baggage":
		if h.Baggage == nil {
			h.Baggage = value
			break
		}
		start := len(join)
		join = append(append(append(join, value...), ';'), h.Baggage...)
		h.Baggage = join[start:]
	case "content-length":
		h.ContentLength = parseUint(value, maxBody)
	case "transfer-encoding":
		h.Chunked = bytes.EqualFold(value, []byte("chunked"))
	case "connection":
		switch {
		case bytes.EqualFold(value, []byte("close")):
			h.KeepAlive = false
		case bytes.EqualFold(value, []byte("keep-alive")):
			h.KeepAlive = true
		}
	case "user-agent":
		h.UserAgent = value
	case "host":
		h.Host = value
	case "content-type":
		h.ContentType = value
	case "x-http-other-config-dbg":
		h.Dbg = value
	case "task-id":
		h.Task = ParseTaskRef(value)
	case "subtask-of":
		h.SubtaskOf = ParseTaskRef(value)
	}
	return join
}

// maxBody bounds what a content-length may say; the sum of two still fits.
const maxBody = 1 << 62

// parseUint reads a decimal number that is all of b; -1 when it is none or
// above limit.
func parseUint(b []byte, limit int64) int64 {
	if len(b) == 0 {
		return -1
	}
	var n int64
	for _, c := range b {
		d := int64(c) - '0'
		if d < 0 || d > 9 || n > (limit-d)/10 {
			return -1
		}
		n = n*10 + d
	}
	return n
}

// bodyLength is the number of bytes that follow the head, -1 when that cannot
// be told from it.
func (h *Head) bodyLength() int64 {
	if h.Reply && (h.Status < 200 && h.Status != 101 || h.Status == 204 || h.Status == 304) {
		return 0
	}
	if h.Chunked || h.ContentLength >= 0 {
		if h.Chunked {
			return -1
		}
		return h.ContentLength
	}
	if !h.Reply {
		switch string(h.Method) {
		case "GET", "HEAD", "DELETE", "OPTIONS", "TRACE":
			return 0
		}
	}
	return -1
}
