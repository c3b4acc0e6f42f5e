//go:build linux

package xapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/testenv/internal/mswitch"
)

// call is a decoded RPC. Values are string, bool, []any, map[string]any, nil;
// numbers are strings, as in XAPI's XML-RPC.
type call struct {
	method string
	params []any
	raw    []json.RawMessage // params as they came, of JSON
	json   bool
	v2     bool
	id     string // JSON
}

// failure is an XAPI error: a code and its parameters.
type failure struct {
	code   string
	params []string
}

func fail(code string, params ...string) *failure { return &failure{code: code, params: params} }

var errBody = errors.New("malformed call")

func parseJSON(b []byte) (*call, error) {
	var c struct {
		Method  string            `json:"method"`
		Params  []json.RawMessage `json:"params"`
		ID      json.RawMessage   `json:"id"`
		Version string            `json:"jsonrpc"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", errBody, err)
	}
	if c.Method == "" || len(c.ID) == 0 || string(c.ID) == "null" {
		return nil, errBody
	}
	out := &call{method: c.Method, raw: c.Params, json: true, v2: c.Version == "2.0", id: string(c.ID)}
	for _, p := range c.Params {
		var v any
		if err := json.Unmarshal(p, &v); err != nil {
			return nil, fmt.Errorf("%w: %w", errBody, err)
		}
		if f, ok := v.(float64); ok {
			v = fmt.Sprint(f)
		}
		out.params = append(out.params, v)
	}
	return out, nil
}

// dict is a struct whose members keep their order, as OCaml's does.
type dict []member

type member struct {
	name  string
	value any
}

// get is the value of a member, nil if there is none.
func (d dict) get(name string) any {
	for _, m := range d {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// xmlText finds the entities of XML text.
var xmlText = strings.NewReplacer("&lt;", "<", "&gt;", ">", "&quot;", `"`, "&apos;", "'", "&#13;", "\r", "&#10;", "\n", "&#34;", `"`, "&#39;", "'", "&amp;", "&")

// xmlEscape is the way back, as rpclib goes it: what XML cannot have is left out.
func xmlEscape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '>':
			b.WriteString("&gt;")
		case c == '<':
			b.WriteString("&lt;")
		case c == '&':
			b.WriteString("&amp;")
		case c == '"':
			b.WriteString("&quot;")
		case c >= ' ' || c == '\t' || c == '\n' || c == '\r':
			b.WriteByte(c)
		}
	}
	return b.String()
}

func parseXML(b []byte) (*call, error) {
	x := xmlScanner{s: string(b)}
	if !x.skipTo("<methodName>") {
		return nil, errBody
	}
	name, ok := x.until("</methodName>")
	if !ok {
		return nil, errBody
	}
	c := &call{method: strings.TrimSpace(name)}
	for x.skipTo("<param>") {
		v, err := x.value(0)
		if err != nil {
			return nil, err
		}
		c.params = append(c.params, v)
	}
	if !strings.Contains(x.s, "</methodCall>") {
		return nil, errBody
	}
	return c, nil
}

// xmlScanner walks through an XML-RPC body.
type xmlScanner struct{ s string }

func (x *xmlScanner) skipTo(tag string) bool {
	i := strings.Index(x.s, tag)
	if i < 0 {
		return false
	}
	x.s = x.s[i+len(tag):]
	return true
}

func (x *xmlScanner) until(tag string) (string, bool) {
	i := strings.Index(x.s, tag)
	if i < 0 {
		return "", false
	}
	out := x.s[:i]
	x.s = x.s[i+len(tag):]
	return out, true
}

func (x *xmlScanner) has(tag string) bool {
	t := strings.TrimLeft(x.s, " \t\r\n")
	if strings.HasPrefix(t, tag) {
		x.s = t[len(tag):]
		return true
	}
	return false
}

func (x *xmlScanner) value(depth int) (any, error) {
	if depth > 32 {
		return nil, errBody
	}
	if x.has("<value/>") {
		return "", nil
	}
	if !x.has("<value>") {
		return nil, errBody
	}
	end := func(v any, tag string) (any, error) {
		if tag != "" && !x.has(tag) || !x.has("</value>") {
			return nil, errBody
		}
		return v, nil
	}
	switch {
	case x.has("<array>"):
		out := []any{}
		if x.has("<data/>") {
			return end(out, "</array>")
		}
		if !x.has("<data>") {
			return nil, errBody
		}
		for !x.has("</data>") {
			v, err := x.value(depth + 1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return end(out, "</array>")
	case x.has("<struct>"):
		out := map[string]any{}
		for !x.has("</struct>") {
			if !x.has("<member>") || !x.has("<name>") {
				return nil, errBody
			}
			name, ok := x.until("</name>")
			if !ok {
				return nil, errBody
			}
			v, err := x.value(depth + 1)
			if err != nil {
				return nil, err
			}
			if !x.has("</member>") {
				return nil, errBody
			}
			out[xmlText.Replace(name)] = v
		}
		return end(out, "")
	case x.has("<string/>"), x.has("<nil/>"):
		return end("", "")
	}
	for _, t := range []string{"string", "boolean", "int", "i4", "double", "dateTime.iso8601"} {
		if x.has("<" + t + ">") {
			text, ok := x.until("</" + t + ">")
			if !ok {
				return nil, errBody
			}
			if t == "boolean" {
				return end(strings.TrimSpace(text) == "1", "")
			}
			return end(xmlText.Replace(text), "")
		}
	}
	text, ok := x.until("</value>")
	if !ok || strings.Contains(text, "<") {
		return nil, errBody
	}
	return xmlText.Replace(text), nil
}

// reply is the body of the answer.
func (c *call) reply(v any, f *failure) string {
	if c.json {
		return c.replyJSON(v, f)
	}
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>`)
	if f == nil {
		b.WriteString("Success</value></member><member><name>Value</name>")
		writeXML(&b, v)
	} else {
		b.WriteString("Failure</value></member><member><name>ErrorDescription</name>")
		all := []any{f.code}
		for _, p := range f.params {
			all = append(all, p)
		}
		writeXML(&b, all)
	}
	b.WriteString(`</member></struct></value></param></params></methodResponse>`)
	return b.String()
}

func writeXML(b *strings.Builder, v any) {
	b.WriteString("<value>")
	switch v := v.(type) {
	case bool:
		if v {
			b.WriteString("<boolean>1</boolean>")
		} else {
			b.WriteString("<boolean>0</boolean>")
		}
	case []any:
		b.WriteString("<array><data>")
		for _, e := range v {
			writeXML(b, e)
		}
		b.WriteString("</data></array>")
	case map[string]any:
		b.WriteString("<struct>")
		for _, k := range keys(v) {
			b.WriteString("<member><name>" + k + "</name>")
			writeXML(b, v[k])
			b.WriteString("</member>")
		}
		b.WriteString("</struct>")
	case dict:
		b.WriteString("<struct>")
		for _, m := range v {
			b.WriteString("<member><name>" + m.name + "</name>")
			writeXML(b, m.value)
			b.WriteString("</member>")
		}
		b.WriteString("</struct>")
	case int32:
		fmt.Fprintf(b, "<i4>%d</i4>", v)
	case nil:
	default:
		b.WriteString(xmlEscape(fmt.Sprint(v)))
	}
	b.WriteString("</value>")
}

func keys(m map[string]any) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (c *call) replyJSON(v any, f *failure) string {
	var b []byte
	if c.v2 {
		b = append(b, `{"jsonrpc":"2.0",`...)
	} else {
		b = append(b, '{')
	}
	if f == nil {
		b = writeJSON(append(b, `"result":`...), v)
		if !c.v2 {
			b = append(b, `,"error":null`...)
		}
		return string(append(append(append(b, `,"id":`...), c.id...), '}'))
	}
	data := func(all []string) {
		b = append(b, '[')
		for i, p := range all {
			if i > 0 {
				b = append(b, ',')
			}
			b = mswitch.Quote(b, p)
		}
		b = append(b, ']')
	}
	if c.v2 {
		b = append(b, `"error":{"code":1,"message":`...)
		b = mswitch.Quote(b, f.code)
		b = append(b, `,"data":`...)
		data(f.params)
		b = append(b, '}')
	} else {
		b = append(b, `"result":null,"error":`...)
		data(append([]string{f.code}, f.params...))
	}
	return string(append(append(append(b, `,"id":`...), c.id...), '}'))
}

func writeJSON(b []byte, v any) []byte {
	switch v := v.(type) {
	case bool:
		if v {
			return append(b, "true"...)
		}
		return append(b, "false"...)
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = writeJSON(b, e)
		}
		return append(b, ']')
	case map[string]any:
		b = append(b, '{')
		for i, k := range keys(v) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(mswitch.Quote(b, k), ':')
			b = writeJSON(b, v[k])
		}
		return append(b, '}')
	case dict:
		b = append(b, '{')
		for i, m := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(mswitch.Quote(b, m.name), ':')
			b = writeJSON(b, m.value)
		}
		return append(b, '}')
	case int32:
		return strconv.AppendInt(b, int64(v), 10)
	case nil:
		return append(b, `""`...)
	}
	return mswitch.Quote(b, fmt.Sprint(v))
}
