//go:build linux

package probes

import (
	"bytes"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
)

// execRecord is what a KindExec record says, in place.
type execRecord struct {
	file []byte
	args [bpf.ExecArgs][]byte // without argv[0]
}

// execOf reads a record of at least sizeExec bytes.
func execOf(raw []byte) (x execRecord) {
	b := raw[sizeHdr+commLen:]
	x.file = untilNUL(b[:bpf.ExecArgLen])
	for i := range x.args {
		b = b[bpf.ExecArgLen:]
		x.args[i] = untilNUL(b[:bpf.ExecArgLen])
	}
	return x
}

func untilNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// script returns the path of what is run: the file itself, or for
// "python3 -m observer <script>", as traced SM scripts are run, the script.
func (x *execRecord) script() []byte {
	if bytes.HasPrefix(base(x.file), []byte("python")) {
		for i := range len(x.args) - 2 {
			if string(x.args[i]) == "-m" && string(x.args[i+1]) == "observer" && len(x.args[i+2]) > 0 {
				return x.args[i+2]
			}
		}
	}
	return x.file
}

// program returns the base name of the script, or nothing if it holds bytes
// that no name of a program should.
func (x *execRecord) program() []byte {
	name := base(x.script())
	for _, b := range name {
		if b <= ' ' || b >= 0x7f {
			return nil
		}
	}
	return name
}

// operation returns the method name of the first argument that is an XML-RPC
// call, as SM scripts are given. Nothing else of the arguments gets out.
func (x *execRecord) operation() []byte {
	open, shut := []byte("<methodName>"), []byte("</methodName>")
	for _, a := range x.args {
		i := bytes.Index(a, open)
		if i < 0 {
			continue
		}
		name := a[i+len(open):]
		j := bytes.Index(name, shut)
		if j <= 0 || !isMethodName(name[:j]) {
			return nil
		}
		return name[:j]
	}
	return nil
}

// objects returns the uuids of the storage repository and the disk image that the
// program is to work at: the first that stand in the path of an image, or behind
// the -u of cleanup.py, which tidies up a repository. Other uuids stay in.
func (x *execRecord) objects() (sr, vdi []byte) {
	tidies := bytes.HasPrefix(base(x.file), []byte("cleanup"))
	for i, a := range x.args {
		tidies = tidies || bytes.HasPrefix(base(a), []byte("cleanup.py"))
		s, v := event.ParseImage(a)
		if s == nil && tidies && i > 0 && string(x.args[i-1]) == "-u" && event.IsUUID(a) {
			s = a
		}
		if sr == nil {
			sr = s
		}
		if vdi == nil {
			vdi = v
		}
	}
	return sr, vdi
}

func isMethodName(b []byte) bool {
	for _, x := range b {
		switch {
		case 'a' <= x && x <= 'z', 'A' <= x && x <= 'Z', '0' <= x && x <= '9', x == '_', x == '.':
		default:
			return false
		}
	}
	return true
}

func base(path []byte) []byte { return path[bytes.LastIndexByte(path, '/')+1:] }
