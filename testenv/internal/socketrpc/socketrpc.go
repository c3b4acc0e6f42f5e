//go:build linux

// Package socketrpc is how daemons call each other where they do without the
// message switch: XML-RPC over a unix socket, a connection and in the server a
// thread for each call.
package socketrpc

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Params are the parameters of a call: those with a name, which stand in one
// struct, which comes first, and the others.
type Params struct {
	Named map[string]string
	Rest  []string
}

// Handler answers one call: the texts of the result, more than one for an array.
type Handler func(t *node.Thread, method string, p Params) ([]string, error)

// Listen serves the socket at path from a thread of its own.
func Listen(p *node.Proc, path string, h Handler) error {
	return p.Listen(path, func(t *node.Thread, c node.Accepted) error { return serve(t, c.FD, h) })
}

type value struct {
	Text    string   `xml:",chardata"`
	Inner   []inner  `xml:",any"`
	Members []member `xml:"struct>member"`
}

type inner struct {
	Text string `xml:",chardata"`
}

type member struct {
	Name  string `xml:"name"`
	Value value  `xml:"value"`
}

func (v value) text() string {
	if len(v.Inner) > 0 {
		return v.Inner[0].Text
	}
	return v.Text
}

// serve answers one call.
func serve(t *node.Thread, fd int, h Handler) error {
	began := truth.Now()
	_, body, err := receive(fd)
	if err != nil {
		return err
	}
	var c struct {
		Method string  `xml:"methodName"`
		Params []value `xml:"params>param>value"`
	}
	if err := xml.Unmarshal(body, &c); err != nil {
		return err
	}
	p := Params{Named: map[string]string{}}
	for _, v := range c.Params {
		for _, m := range v.Members {
			p.Named[m.Name] = m.Value.text()
		}
		if len(v.Members) == 0 {
			p.Rest = append(p.Rest, v.text())
		}
	}
	s := t.Begin(truth.RPC, c.Method)
	s.Start = began
	defer s.End()
	result, err := h(t, c.Method, p)
	status, name := "Success", "Value"
	var f *mswitch.Failure
	if errors.As(err, &f) {
		status, name, result = "Failure", "ErrorDescription", f.Parts
		s.Err = f.Parts[0]
	}
	text := "<nil/>"
	if status == "Success" && len(result) == 1 {
		text = result[0]
	} else if len(result) > 0 {
		text = "<array><data><value>" + strings.Join(result, "</value><value>") + "</value></data></array>"
	}
	err = send(fd, "HTTP/1.1 200 OK\r\n", `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>`+status+
		`</value></member><member><name>`+name+`</name><value>`+text+`</value></member></struct></value></param></params></methodResponse>`)
	s.Entry.End = truth.Now()
	return err
}

// Call calls the server at path as user, the caller's own program, and returns the
// text of its answer, of an array that of its first item.
func Call(path, user, method string, p Params) (string, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0"?><methodCall><methodName>%s</methodName><params>`, method)
	if len(p.Named) > 0 {
		b.WriteString("<param><value><struct>")
		for name, v := range p.Named {
			fmt.Fprintf(&b, "<member><name>%s</name><value>%s</value></member>", name, v)
		}
		b.WriteString("</struct></value></param>")
	}
	for _, v := range p.Rest {
		fmt.Fprintf(&b, "<param><value>%s</value></param>", v)
	}
	b.WriteString("</params></methodCall>")
	fd, err := sys.ConnectUnix(path)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := send(fd, "POST "+path+" HTTP/1.1\r\nuser-agent: "+user+"\r\nhost: localhost\r\n", b.String()); err != nil {
		return "", err
	}
	head, body, err := receive(fd)
	if err != nil {
		return "", err
	}
	var r struct {
		Members []struct {
			Value struct {
				Text  string   `xml:",chardata"`
				Array []string `xml:"array>data>value"`
			} `xml:"value"`
		} `xml:"params>param>value>struct>member"`
	}
	if err := xml.Unmarshal(body, &r); err != nil {
		return "", err
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) || len(r.Members) != 2 || r.Members[0].Value.Text != "Success" {
		return "", fmt.Errorf("%s: %s: %.200q", path, method, body)
	}
	v := r.Members[1].Value
	return append(v.Array, v.Text)[0], nil
}

// send writes a message: its first line, its other headers, its body.
func send(fd int, head, body string) error {
	line, headers, _ := strings.Cut(head, "\n")
	for _, piece := range []string{line + "\n", headers + "content-length: " + strconv.Itoa(len(body)) + "\r\n\r\n", body} {
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
