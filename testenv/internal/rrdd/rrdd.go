//go:build linux

// Package rrdd is xcp-rrdd as it looks from outside: XML-RPC on a unix socket of
// its own, also where the other daemons use the message switch; a connection and a
// thread for each call.
package rrdd

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Socket is where xcp-rrdd listens.
const Socket = "/var/lib/xcp/xcp-rrdd"

// Run makes the threads of the process.
func Run(p *node.Proc) error {
	if err := os.MkdirAll(filepath.Dir(Socket), 0o700); err != nil {
		return err
	}
	l, err := sys.ListenUnix(Socket)
	if err != nil {
		return err
	}
	p.Go("", node.Tick)
	p.Go("", func(t *node.Thread) {
		for {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				t.Log(node.Error, "rrdd_main", "accept: %v", err)
				return
			}
			p.Go("", func(t *node.Thread) {
				defer unix.Close(fd)
				if err := serve(t, fd); err != nil {
					t.Log(node.Error, "rrdd_main", "%v", err)
				}
			})
		}
	})
	return nil
}

type methodCall struct {
	Method  string `xml:"methodName"`
	Members []struct {
		Name  string `xml:"name"`
		Value string `xml:"value"`
	} `xml:"params>param>value>struct>member"`
}

// serve answers one call.
func serve(t *node.Thread, fd int) error {
	_, body, err := receive(fd)
	if err != nil {
		return err
	}
	var c methodCall
	if err := xml.Unmarshal(body, &c); err != nil {
		return err
	}
	s := t.Begin(truth.RPC, c.Method)
	defer s.End()
	member := func(name string) string {
		for _, m := range c.Members {
			if m.Name == name {
				return m.Value
			}
		}
		return ""
	}
	result := `<member><name>Status</name><value>Success</value></member><member><name>Value</name><value><nil/></value></member>`
	switch c.Method {
	case "push_rrd_local":
		t.Log(node.Debug, "rrdd_http_handler", "Pushing RRD for VM uuid=%s locally", member("vm_uuid"))
	default:
		s.Err = "Unknown_RPC"
		result = `<member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value><array><data><value>Unknown_RPC</value></data></array></value></member>`
	}
	err = send(fd, "HTTP/1.1 200 OK\r\n", `<?xml version="1.0"?><methodResponse><params><param><value><struct>`+result+`</struct></value></param></params></methodResponse>`)
	s.Entry.End = truth.Now()
	return err
}

// Call calls xcp-rrdd. members are the parameters' names and values in turn.
func Call(user, method string, members ...string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0"?><methodCall><methodName>%s</methodName><params><param><value><struct>`, method)
	for i := 0; i+1 < len(members); i += 2 {
		fmt.Fprintf(&b, "<member><name>%s</name><value>%s</value></member>", members[i], members[i+1])
	}
	b.WriteString("</struct></value></param></params></methodCall>")
	fd, err := sys.ConnectUnix(Socket)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := send(fd, "POST "+Socket+" HTTP/1.1\r\nuser-agent: "+user+"\r\nhost: localhost\r\n", b.String()); err != nil {
		return err
	}
	head, body, err := receive(fd)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) || !bytes.Contains(body, []byte("Success")) {
		return fmt.Errorf("xcp-rrdd: %s: %.200q", method, body)
	}
	return nil
}

// send writes a message: its first line, its other headers, its body.
func send(fd int, head, body string) error {
	line, headers, _ := bytes.Cut([]byte(head), []byte("\n"))
	for _, piece := range []string{string(line) + "\n", string(headers) + "content-length: " + strconv.Itoa(len(body)) + "\r\n\r\n", body} {
		if err := sys.Write(fd, []byte(piece)); err != nil {
			return err
		}
	}
	return nil
}

// receive reads a message, 64 KiB at a time.
func receive(fd int) (head, body []byte, err error) {
	var in []byte
	buf := make([]byte, sys.Piece)
	for {
		n, err := sys.Read(fd, buf)
		if err != nil {
			return nil, nil, err
		}
		in = append(in, buf[:n]...)
		head, body, ok := bytes.Cut(in, []byte("\r\n\r\n"))
		if !ok {
			continue
		}
		_, after, _ := bytes.Cut(head, []byte("content-length: "))
		after, _, _ = bytes.Cut(after, []byte("\r\n"))
		length, err := strconv.Atoi(string(after))
		if err != nil {
			return nil, nil, fmt.Errorf("content-length %q", after)
		}
		if len(body) >= length {
			return head, body[:length], nil
		}
	}
}
