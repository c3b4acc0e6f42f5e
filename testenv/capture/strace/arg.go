package strace

import (
	"strconv"
	"strings"
)

// FD is a file descriptor with what -yy says about it.
type FD struct {
	Num  int32
	Kind string // "UNIX-STREAM", "UNIX", "TCP", "pipe", …; "" for a path
	Ino  uint64 // of a socket or pipe
	Peer uint64 // inode of the other end, 0 if not printed
	Path string // of a file; name of a unix socket
}

// Stream tells whether fd is a socket of a stream.
func (fd FD) Stream() bool {
	switch fd.Kind {
	case "UNIX-STREAM", "TCP", "TCPv6":
		return true
	}
	return false
}

// FD reads a descriptor like 18<UNIX-STREAM:[709749->709747,"/var/lib/xcp/xapi"]>.
func (a Arg) FD() (FD, bool) {
	num, rest, decorated := strings.Cut(string(a), "<")
	n, err := strconv.ParseInt(num, 10, 32)
	if err != nil || n < 0 {
		return FD{}, false
	}
	fd := FD{Num: int32(n)}
	rest, ok := strings.CutSuffix(rest, ">")
	if !decorated || !ok {
		return fd, true
	}
	kind, inner, ok := strings.Cut(rest, ":[")
	if !ok || !strings.HasSuffix(inner, "]") {
		fd.Path = rest
		return fd, true
	}
	fd.Kind = kind
	inner = strings.TrimSuffix(inner, "]")
	inner, name, named := strings.Cut(inner, ",")
	if named {
		if b, _, ok := Arg(name).Bytes(); ok {
			fd.Path = string(b)
		}
	}
	ino, peer, _ := strings.Cut(inner, "->")
	fd.Ino, _ = strconv.ParseUint(ino, 10, 64)
	fd.Peer, _ = strconv.ParseUint(peer, 10, 64)
	return fd, true
}

// Int reads a decimal, hexadecimal or octal number; what stands behind it (a
// decoration, an error's name) is ignored.
func (a Arg) Int() (int64, bool) {
	s := string(a)
	end := 0
	for end < len(s) && (alnum(s[end]) || end == 0 && s[end] == '-') {
		end++
	}
	n, err := strconv.ParseInt(s[:end], 0, 64)
	return n, err == nil
}

// Bytes reads a string. cut tells that strace (its option -s) left bytes out
// at the end; ok is false if a is no string.
func (a Arg) Bytes() (b []byte, cut, ok bool) {
	s, ok := strings.CutPrefix(string(a), `"`)
	if !ok {
		return nil, false, false
	}
	b = make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b, strings.HasPrefix(s[i+1:], "..."), true
		case '\\':
			i++
			if i == len(s) {
				return b, true, false
			}
			c, n := escape(s[i:])
			b = append(b, c)
			i += n - 1
		default:
			b = append(b, s[i])
		}
	}
	return b, true, false
}

// escape reads what follows a backslash and returns how many bytes it took.
func escape(s string) (byte, int) {
	switch s[0] {
	case 'n':
		return '\n', 1
	case 'r':
		return '\r', 1
	case 't':
		return '\t', 1
	case 'v':
		return '\v', 1
	case 'f':
		return '\f', 1
	case 'x':
		if len(s) >= 3 {
			if n, err := strconv.ParseUint(s[1:3], 16, 8); err == nil {
				return byte(n), 3
			}
		}
		return 'x', 1
	case '0', '1', '2', '3', '4', '5', '6', '7':
		n, i := 0, 0
		for i < 3 && i < len(s) && s[i] >= '0' && s[i] <= '7' {
			n = n*8 + int(s[i]-'0')
			i++
		}
		return byte(n), i
	}
	return s[0], 1
}

// Quote writes b as strace does.
func Quote(b []byte) Arg {
	var out strings.Builder
	out.Grow(len(b) + 2)
	out.WriteByte('"')
	for i, c := range b {
		switch {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteByte(c)
		case c == '\n':
			out.WriteString(`\n`)
		case c == '\r':
			out.WriteString(`\r`)
		case c == '\t':
			out.WriteString(`\t`)
		case c == '\v':
			out.WriteString(`\v`)
		case c == '\f':
			out.WriteString(`\f`)
		case c >= ' ' && c < 0x7f:
			out.WriteByte(c)
		default:
			// Short octal unless a digit follows, which would be taken into it.
			s := strconv.FormatUint(uint64(c), 8)
			if i+1 < len(b) && b[i+1] >= '0' && b[i+1] <= '9' {
				s = ("000" + s)[len(s):]
			}
			out.WriteByte('\\')
			out.WriteString(s)
		}
	}
	out.WriteByte('"')
	return Arg(out.String())
}

// List reads the elements of ["a", "b"], as execve's arguments are printed.
// Those that are no strings are left out.
func (a Arg) List() []string {
	s, ok := strings.CutPrefix(string(a), "[")
	if !ok {
		return nil
	}
	parts, _, _ := arguments(strings.TrimSuffix(s, "]"))
	var out []string
	for _, p := range parts {
		if b, _, ok := p.Bytes(); ok {
			out = append(out, string(b))
		}
	}
	return out
}
