//go:build linux

package mswitch

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Without the switch (use-switch=false) daemons meet on sockets of their own and
// say the same in XML-RPC: a connection, and in the server a thread, for each call
// (xcp_service.ml, xcp_client.ml).

// socketOf is where the server of a queue listens then.
func socketOf(queue string) string {
	name := strings.TrimPrefix(queue, "org.xen.xapi.")
	switch {
	case name == "xenops.classic":
		return "/var/lib/xcp/xenopsd"
	case name == "storage":
		return "/var/lib/xcp/storage"
	case strings.HasPrefix(name, "storage."):
		return "/var/lib/xcp/storage.d/" + strings.TrimPrefix(name, "storage.")
	}
	return ""
}

// escaped is a string as rpclib writes it.
var escaped = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// appendXML turns JSON into an XML-RPC value as rpclib writes it, members in their
// order.
func appendXML(b *bytes.Buffer, d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	b.WriteString("<value>")
	switch v := t.(type) {
	case nil:
		b.WriteString("<nil/>")
	case bool:
		b.WriteString(map[bool]string{false: "<boolean>0</boolean>", true: "<boolean>1</boolean>"}[v])
	case json.Number:
		kind := "i8"
		if strings.ContainsAny(v.String(), ".eE") {
			kind = "double"
		}
		fmt.Fprintf(b, "<%s>%s</%[1]s>", kind, v)
	case string:
		b.WriteString(escaped.Replace(v))
	case json.Delim:
		end := "</data></array>"
		if v == '{' {
			b.WriteString("<struct>")
			end = "</struct>"
		} else {
			b.WriteString("<array><data>")
		}
		for d.More() {
			if v == '{' {
				name, err := d.Token()
				if err != nil {
					return err
				}
				fmt.Fprintf(b, "<member><name>%s</name>", name)
			}
			if err := appendXML(b, d); err != nil {
				return err
			}
			if v == '{' {
				b.WriteString("</member>")
			}
		}
		if _, err := d.Token(); err != nil {
			return err
		}
		b.WriteString(end)
	}
	b.WriteString("</value>")
	return nil
}

func toXML(b *bytes.Buffer, text string) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	return appendXML(b, d)
}

// xmlValue is an XML-RPC value on its way to JSON.
type xmlValue struct {
	Text   string     `xml:",chardata"`
	Int    *string    `xml:"i8"`
	Bool   *string    `xml:"boolean"`
	Double *string    `xml:"double"`
	Nil    *struct{}  `xml:"nil"`
	Array  *xmlArray  `xml:"array"`
	Struct *xmlStruct `xml:"struct"`
}

type xmlArray struct {
	Values []xmlValue `xml:"data>value"`
}

type xmlStruct struct {
	Members []struct {
		Name  string   `xml:"name"`
		Value xmlValue `xml:"value"`
	} `xml:"member"`
}

func (v *xmlValue) appendJSON(b []byte) []byte {
	switch {
	case v.Int != nil:
		return append(b, *v.Int...)
	case v.Double != nil:
		return append(b, *v.Double...)
	case v.Bool != nil:
		return strconv.AppendBool(b, *v.Bool == "1")
	case v.Nil != nil:
		return append(b, "null"...)
	case v.Array != nil:
		b = append(b, '[')
		for i := range v.Array.Values {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.Array.Values[i].appendJSON(b)
		}
		return append(b, ']')
	case v.Struct != nil:
		b = append(b, '{')
		for i := range v.Struct.Members {
			if i > 0 {
				b = append(b, ',')
			}
			m := &v.Struct.Members[i]
			b = append(append(b, Quoted(m.Name)...), ':')
			b = m.Value.appendJSON(b)
		}
		return append(b, '}')
	}
	return append(b, Quoted(v.Text)...)
}

// callSocket is Call without the switch.
func (c *Client) callSocket(t *node.Thread, path, method, params string) (json.RawMessage, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0"?><methodCall><methodName>%s</methodName><params>`, method)
	d := json.NewDecoder(strings.NewReader("[" + params + "]"))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	for d.More() {
		b.WriteString("<param>")
		if err := appendXML(&b, d); err != nil {
			return nil, err
		}
		b.WriteString("</param>")
	}
	b.WriteString("</params></methodCall>")

	s := t.Begin(truth.Socket, method)
	defer s.End()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// A name, for the truth alone: by it the server's entry finds this one.
	if err := unix.Bind(fd, &unix.SockaddrUnix{}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	s.Keys = append(s.Keys, nameKey(own))
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	if err := sendXML(fd, "POST "+path+" HTTP/1.1\r\n", "user-agent: "+c.p.Name+"\r\nhost: localhost\r\n", b.String()); err != nil {
		return nil, err
	}
	body, err := receiveXML(fd)
	s.Entry.End = truth.Now()
	if err != nil {
		return nil, err
	}
	var r struct {
		Members []struct {
			Name  string   `xml:"name"`
			Value xmlValue `xml:"value"`
		} `xml:"params>param>value>struct>member"`
	}
	if err := xml.Unmarshal(body, &r); err != nil || len(r.Members) != 2 {
		return nil, fmt.Errorf("%s: %s: %.200q: %v", path, method, body, err)
	}
	v := &r.Members[1].Value
	if r.Members[0].Value.Text == "Success" {
		return v.appendJSON(nil), nil
	}
	f := &Failure{}
	if v.Array != nil {
		for _, p := range v.Array.Values {
			f.Parts = append(f.Parts, p.Text)
		}
	}
	if len(f.Parts) == 0 {
		f.Parts = []string{"Internal_error"}
	}
	s.Err = f.Parts[0]
	return nil, f
}

func nameKey(sa unix.Sockaddr) string {
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		return "name:" + u.Name
	}
	return ""
}

// listenSocket is Listen without the switch.
func listenSocket(p *node.Proc, path string, h Handler) error {
	return p.Listen(path, func(t *node.Thread, c node.Accepted) error {
		return serveSocket(t, c.FD, nameKey(c.Peer), c.Taken, h)
	})
}

func serveSocket(t *node.Thread, fd int, peer string, taken int64, h Handler) error {
	s := t.Begin(truth.RPC, "")
	s.Start, s.ParentKey = taken, peer
	defer s.End()
	body, err := receiveXML(fd)
	if err != nil {
		return err
	}
	var c struct {
		Method string     `xml:"methodName"`
		Params []xmlValue `xml:"params>param>value"`
	}
	if err := xml.Unmarshal(body, &c); err != nil {
		return err
	}
	var raw []json.RawMessage
	for i := range c.Params {
		raw = append(raw, c.Params[i].appendJSON(nil))
	}
	p, err := paramsOf(raw)
	if err != nil {
		return err
	}
	tag, sender := node.ParseDebugInfo(p.DebugInfo())
	s.Name, s.Tag, s.Native = c.Method, node.LastWord(tag), sender.String()
	result, err := h(t, c.Method, p)
	status, name := "Success", "Value"
	if err != nil {
		f := &Failure{Parts: []string{"Internal_error", err.Error()}}
		errors.As(err, &f)
		s.Err = f.Parts[0]
		list, err := json.Marshal(f.Parts)
		if err != nil {
			return err
		}
		status, name, result = "Failure", "ErrorDescription", string(list)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>%s</value></member><member><name>%s</name>`, status, name)
	if err := toXML(&b, result); err != nil && err != io.EOF {
		return err
	}
	b.WriteString(`</member></struct></value></param></params></methodResponse>`)
	err = sendXML(fd, "HTTP/1.1 200 OK\r\n", "", b.String())
	s.Entry.End = truth.Now()
	return err
}

// sendXML writes a message: its first line, its other headers, its body.
func sendXML(fd int, line, headers, body string) error {
	for _, piece := range []string{line, headers + "content-length: " + strconv.Itoa(len(body)) + "\r\n\r\n", body} {
		if err := sys.Write(fd, []byte(piece)); err != nil {
			return err
		}
	}
	return nil
}

// receiveXML reads a message, 64 KiB at a time, and returns its body.
func receiveXML(fd int) ([]byte, error) {
	var in []byte
	buf := make([]byte, sys.Piece)
	for {
		n, err := sys.Read(fd, buf)
		if err != nil {
			return nil, err
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
			return nil, fmt.Errorf("content-length %q", after)
		}
		if len(body) >= length {
			return body[:length], nil
		}
	}
}
