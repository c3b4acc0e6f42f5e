package wire

// Head is the head of one HTTP/1.x message. Its slices are parts of the bytes
// given to Reader.Next or of the Reader's buffer: valid until its next call.
// A header that was not there is nil.
type Head struct {
	Reply  bool   // a status line was read, not a request line
	Method []byte // of the request line, as sent
	Path   []byte // of the request line, without query and fragment
	Status int    // of the status line
	Minor  uint8  // the x of HTTP/1.x
	Framed bool   // came behind "FRAME " and its length

	ContentLength int64 // -1: not given
	Chunked       bool  // transfer-encoding: chunked
	KeepAlive     bool  // by xapi's rule: 1.1 unless "close", 1.0 only with "keep-alive"

	Traceparent []byte // the last one of them
	Tracestate  []byte // all of them, joined by ','
	Baggage     []byte // all of them, joined by ';'
	UserAgent   []byte
	Host        []byte
	ContentType []byte
	Dbg         []byte // x-http-other-config-dbg: replaces the task's log tag
	Task        TaskID // task-id: the caller's task goes on here
	SubtaskOf   TaskID // subtask-of
}
