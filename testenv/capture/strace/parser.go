// Package strace reads the text that strace -f -ttt -yy writes (with or
// without -T) as a stream of system calls that begin and end.
//
// It takes what comes: a line that it does not understand is counted and left
// out, never an error, for a recording is often cut off in mid-line.
package strace

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLine is the longest line that is read whole. The rest of a longer one is
// dropped: its call keeps the arguments that were read.
const MaxLine = 16 << 20

// Kind says what a Record tells.
type Kind uint8

// Kinds of records.
const (
	Enter Kind = 1 // a system call begins
	Exit  Kind = 2 // a system call ends; the same *Call as its Enter
	Death Kind = 3 // a thread ended: Call is nil, Status is set
)

// Record is one thing that happened, in the order of the file.
type Record struct {
	Kind   Kind
	TID    uint32
	Time   int64 // ns since 1970; of an Exit: see Call.End
	Call   *Call
	Status int32 // of a Death: as wait(2) gives it
}

// Call is one system call. Between Enter and Exit only what strace printed at
// its start is there: Args holds those that were complete then.
type Call struct {
	TID     uint32
	Name    string
	Start   int64 // ns since 1970
	End     int64 // ns since 1970; 0 if the recording does not tell
	Args    []Arg
	Return  int64
	Known   bool   // Return is known: false for "= ?"
	Errno   string // "EAGAIN", or ""
	Result  Arg    // what was printed for the return value, decoration included
	Resumed bool   // the recording interrupted it

	text string // arguments so far
}

// Arg is one argument as strace printed it.
type Arg string

// Parser reads records. Make one with NewParser.
type Parser struct {
	in      *bufio.Reader
	open    map[uint32]*Call
	queue   []Record
	line    []byte
	skipped int
}

// NewParser returns a Parser of r.
func NewParser(r io.Reader) *Parser {
	return &Parser{in: bufio.NewReaderSize(r, 64<<10), open: make(map[uint32]*Call)}
}

// Skipped returns the number of lines so far that were not understood. Signals
// and strace's own remarks do not count.
func (p *Parser) Skipped() int { return p.skipped }

// Next returns the next record, or io.EOF.
func (p *Parser) Next() (Record, error) {
	for len(p.queue) == 0 {
		line, err := p.readLine()
		if err != nil {
			return Record{}, err
		}
		p.parse(string(line))
	}
	r := p.queue[0]
	p.queue = p.queue[1:]
	return r, nil
}

// ReadAll returns all records of r and the number of lines that were not
// understood.
func ReadAll(r io.Reader) ([]Record, int, error) {
	p := NewParser(r)
	var out []Record
	for {
		rec, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out, p.skipped, nil
		}
		if err != nil {
			return out, p.skipped, err
		}
		out = append(out, rec)
	}
}

func (p *Parser) readLine() ([]byte, error) {
	p.line = p.line[:0]
	for {
		part, err := p.in.ReadSlice('\n')
		if room := MaxLine - len(p.line); room > 0 {
			p.line = append(p.line, part[:min(len(part), room)]...)
		}
		switch {
		case err == nil:
			return bytes.TrimRight(p.line, "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(p.line) > 0:
			return p.line, nil
		default:
			return nil, err
		}
	}
}

func (p *Parser) parse(line string) {
	if line == "" || strings.HasPrefix(line, "strace: ") {
		return
	}
	tid, at, rest, ok := prefix(line)
	if !ok {
		p.skipped++
		return
	}
	switch {
	case strings.HasPrefix(rest, "+++ "):
		status, ok := status(rest)
		if !ok {
			p.skipped++
			return
		}
		delete(p.open, tid)
		p.queue = append(p.queue, Record{Kind: Death, TID: tid, Time: at, Status: status})
	case strings.HasPrefix(rest, "--- "):
	case strings.HasPrefix(rest, "<... "):
		p.resume(tid, at, rest)
	default:
		p.begin(tid, at, rest)
	}
}

// prefix takes "tid seconds.micros " off a line.
func prefix(line string) (tid uint32, at int64, rest string, ok bool) {
	word, rest, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return 0, 0, "", false
	}
	word, rest, ok = strings.Cut(strings.TrimLeft(rest, " "), " ")
	if !ok {
		return 0, 0, "", false
	}
	at, ok = seconds(word)
	return uint32(n), at, rest, ok
}

// seconds turns a decimal number of seconds into nanoseconds.
func seconds(s string) (int64, bool) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseUint(whole, 10, 33)
	if err != nil || len(frac) > 9 {
		return 0, false
	}
	var ns uint64
	if frac != "" {
		if ns, err = strconv.ParseUint((frac + "00000000")[:9], 10, 30); err != nil {
			return 0, false
		}
	}
	return int64(sec)*1e9 + int64(ns), true
}

// status reads "+++ exited with 0 +++" and "+++ killed by SIGKILL +++".
func status(s string) (int32, bool) {
	if v, ok := strings.CutPrefix(s, "+++ exited with "); ok {
		code, err := strconv.ParseUint(strings.TrimSuffix(v, " +++"), 10, 8)
		return int32(code) << 8, err == nil
	}
	if v, ok := strings.CutPrefix(s, "+++ killed by "); ok {
		name, _, _ := strings.Cut(v, " ")
		return int32(unix.SignalNum(name)), true
	}
	return 0, strings.HasPrefix(s, "+++ superseded by execve")
}

const unfinished = " <unfinished ...>"

func (p *Parser) begin(tid uint32, at int64, rest string) {
	name, args, ok := strings.Cut(rest, "(")
	if !ok || !identifier(name) {
		p.skipped++
		return
	}
	c := &Call{TID: tid, Name: name, Start: at}
	if head, ok := strings.CutSuffix(args, unfinished); ok {
		// What follows the last comma of an interrupted line is not there yet.
		c.text = head
		c.Args, _, _ = arguments(head)
		c.Resumed = true
		p.open[tid] = c
		p.queue = append(p.queue, Record{Kind: Enter, TID: tid, Time: at, Call: c})
		return
	}
	if !c.finish(args) {
		p.skipped++
		return
	}
	p.queue = append(p.queue,
		Record{Kind: Enter, TID: tid, Time: at, Call: c},
		Record{Kind: Exit, TID: tid, Time: max(c.End, at), Call: c})
}

func (p *Parser) resume(tid uint32, at int64, rest string) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(rest, "<... "), " resumed>")
	c := p.open[tid]
	if !ok || c == nil || c.Name != name {
		p.skipped++
		return
	}
	delete(p.open, tid)
	// A call that is resumed only to be interrupted for good by the exit of its process.
	rest = strings.TrimPrefix(rest, unfinished)
	c.Args = nil
	if !c.finish(c.text + rest) {
		p.skipped++
		return
	}
	c.text = ""
	if c.End == 0 {
		c.End = at
	}
	p.queue = append(p.queue, Record{Kind: Exit, TID: tid, Time: c.End, Call: c})
}

func identifier(s string) bool {
	for i := range len(s) {
		b := s[i]
		if b != '_' && !(b >= 'a' && b <= 'z') && !(b >= '0' && b <= '9') {
			return false
		}
	}
	return s != ""
}

// finish takes the arguments and the result from "args) = 6 <0.000010>".
func (c *Call) finish(text string) bool {
	args, n, closed := arguments(text)
	if !closed {
		return false
	}
	rest, ok := strings.CutPrefix(strings.TrimLeft(text[n:], " "), "= ")
	if !ok {
		return false
	}
	c.Args = args
	if i := strings.LastIndex(rest, " <"); i >= 0 && strings.HasSuffix(rest, ">") {
		if d, ok := seconds(rest[i+2 : len(rest)-1]); ok {
			c.End = c.Start + d
			rest = rest[:i]
		}
	}
	c.Result = Arg(rest)
	if c.Return, ok = c.Result.Int(); ok {
		c.Known = true
		if c.Return < 0 {
			_, c.Errno, _ = strings.Cut(rest, " ")
			c.Errno, _, _ = strings.Cut(c.Errno, " ")
		}
	}
	return true
}

// arguments splits s at its top-level commas up to the parenthesis that closes
// the call. It returns the length of what it took and whether it saw the end.
func arguments(s string) (args []Arg, n int, closed bool) {
	var depth, start int
	add := func(end int) {
		if a := strings.TrimSpace(s[start:end]); a != "" {
			args = append(args, Arg(a))
		}
	}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			j := quoted(s, i)
			if j < 0 {
				return args, len(s), false
			}
			i = j - 1
		case '<':
			if i > 0 && alnum(s[i-1]) {
				j := decoration(s, i)
				if j < 0 {
					return args, len(s), false
				}
				i = j - 1
			}
		case '/':
			if strings.HasPrefix(s[i:], "/*") {
				j := strings.Index(s[i+2:], "*/")
				if j < 0 {
					return args, len(s), false
				}
				i += j + 3
			}
		case '(', '[', '{':
			depth++
		case ']', '}':
			depth--
		case ')':
			if depth <= 0 {
				add(i)
				return args, i + 1, true
			}
			depth--
		case ',':
			if depth <= 0 {
				add(i)
				start = i + 1
			}
		}
	}
	add(len(s))
	return args, len(s), false
}

func alnum(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b == '_'
}

// quoted returns the index after the string that starts at s[i], or -1.
func quoted(s string, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// decoration returns the index after the <...> that starts at s[i], or -1.
// "->" between two inodes stands in brackets.
func decoration(s string, i int) int {
	depth := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case '"':
			j := quoted(s, i)
			if j < 0 {
				return -1
			}
			i = j - 1
		case '[':
			depth++
		case ']':
			depth--
		case '>':
			if depth <= 0 {
				return i + 1
			}
		}
	}
	return -1
}
