//go:build linux

package xapi

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

const xmlBody = "<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.start_on</methodName>\n<params>\n<param>\n<value><string>OpaqueRef:a &amp; b</string></value>\n</param>\n<param>\n<value><boolean>1</boolean></value>\n</param>\n<param><value>bare</value></param><param><value><array><data><value><int>3</int></value></data></array></value></param><param><value><struct><member><name>k</name><value><nil/></value></member></struct></value></param></params>\n</methodCall>\n"

func TestParseXML(t *testing.T) {
	c, err := parseXML([]byte(xmlBody))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(c.method, "VM.start_on"))
	qt.Assert(t, qt.DeepEquals(c.params, []any{"OpaqueRef:a & b", true, "bare", []any{"3"}, map[string]any{"k": ""}}))
}

func TestReplies(t *testing.T) {
	f := fail("HANDLE_INVALID", "VM", "<x>")
	qt.Check(t, qt.Equals((&call{}).reply("", nil), `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value></value></member></struct></value></param></params></methodResponse>`))
	qt.Check(t, qt.StringContains((&call{}).reply(nil, f), `<value><array><data><value>HANDLE_INVALID</value><value>VM</value><value>&lt;x&gt;</value></data></array></value>`))
	qt.Check(t, qt.Equals((&call{json: true, v2: true, id: "999"}).reply(nil, fail("HANDLE_INVALID", "VM", "OpaqueRef:nonsense")),
		`{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:nonsense"]},"id":999}`))
	qt.Check(t, qt.Equals((&call{json: true, id: "1"}).reply([]any{"a"}, nil), `{"result":["a"],"error":null,"id":1}`))
}

// headOf reads a header from a socket, as it comes in pieces of the given size.
func headOf(t testing.TB, in string, piece int) (*request, error) {
	var fds [2]int
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	qt.Assert(t, qt.IsNil(err))
	defer unix.Close(fds[0])
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fds[1])
		for in != "" {
			n := min(piece, len(in))
			if _, _, err := unixSend(fds[1], in[:n]); err != nil {
				return
			}
			in = in[n:]
		}
	}()
	h := headReader{fd: fds[0], begun: func() {}}
	r, err := h.read()
	_ = unix.Shutdown(fds[0], unix.SHUT_RDWR)
	<-done
	return r, err
}

func unixSend(fd int, s string) (int, int, error) {
	return 0, 0, unix.Sendto(fd, []byte(s), unix.MSG_NOSIGNAL, nil)
}

func TestHead(t *testing.T) {
	const plain = "POST /jsonrpc?x=1 HTTP/1.1\r\nHost: a\r\nTraceParent: one\r\ntraceparent: two\r\nContent-Length: 12\r\n\r\n"
	frame := fmt.Sprintf("FRAME %012d", len(plain))
	for _, in := range []string{
		plain,
		"PROXY TCP6 ::1 ::1 1 2\r\n" + plain,
		frame + plain,
		"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + frame + plain,
	} {
		for _, piece := range []int{1, 3, 7, 4096} {
			r, err := headOf(t, in, piece)
			qt.Assert(t, qt.IsNil(err), qt.Commentf("%q in %d", in, piece))
			qt.Check(t, qt.Equals(r.path, "/jsonrpc"))
			qt.Check(t, qt.Equals(r.length, 12))
			qt.Check(t, qt.Equals(r.header["traceparent"], "two"))
			qt.Check(t, qt.Equals(r.framed, strings.Contains(in, "FRAME")))
		}
	}
	_, err := headOf(t, "", 1)
	qt.Check(t, qt.Equals(err, io.EOF))
	_, err = headOf(t, "POST /", 1)
	qt.Check(t, qt.ErrorIs(err, io.ErrUnexpectedEOF))
	_, err = headOf(t, "GET / HTTP/1.1\r\nx: "+strings.Repeat("y", 2000), 4096)
	qt.Check(t, qt.ErrorIs(err, errTooLong))
}

func FuzzHead(f *testing.F) {
	f.Add("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n")
	f.Add("PROXY TCP6 ::1 ::1 1 2\r\nFRAME 000000000010")
	f.Add("FRAME 999999999999")
	f.Fuzz(func(t *testing.T, in string) {
		r, err := headOf(t, in[:min(len(in), 4096)], 4096)
		if (r == nil) == (err == nil) {
			t.Fatalf("%+v and %v", r, err)
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(xmlBody))
	f.Add([]byte(`{"method":"VM.start","params":["x",{"y":[1,null]}],"id":1}`))
	f.Add([]byte("<methodName>x</methodName><param><value><array><data><value>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func([]byte) (*call, error){parseXML, parseJSON} {
			if c, err := parse(b); err == nil {
				c.reply(any(c.params), nil)
				c.reply(nil, fail(c.method, "p"))
			}
		}
	})
}
