package client

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// xmlCall is a call as xmlrpc.client's dumps writes it.
func xmlCall(method string, params []any) []byte {
	var b bytes.Buffer
	b.WriteString("<?xml version='1.0'?>\n<methodCall>\n<methodName>" + method + "</methodName>\n<params>\n")
	for _, p := range params {
		b.WriteString("<param>\n")
		xmlValue(&b, p)
		b.WriteString("</param>\n")
	}
	b.WriteString("</params>\n</methodCall>\n")
	return b.Bytes()
}

func xmlValue(b *bytes.Buffer, v any) {
	b.WriteString("<value>")
	switch v := v.(type) {
	case bool:
		n := "0"
		if v {
			n = "1"
		}
		b.WriteString("<boolean>" + n + "</boolean>")
	case int:
		b.WriteString("<int>" + strconv.Itoa(v) + "</int>")
	case float64:
		b.WriteString("<double>" + strconv.FormatFloat(v, 'g', -1, 64) + "</double>")
	case []any:
		b.WriteString("<array><data>\n")
		for _, e := range v {
			xmlValue(b, e)
		}
		b.WriteString("</data></array>")
	case map[string]any:
		b.WriteString("<struct>\n")
		for name, e := range v {
			b.WriteString("<member>\n<name>")
			_ = xml.EscapeText(b, []byte(name)) // a Buffer does not fail
			b.WriteString("</name>\n")
			xmlValue(b, e)
			b.WriteString("</member>\n")
		}
		b.WriteString("</struct>")
	default:
		b.WriteString("<string>")
		_ = xml.EscapeText(b, fmt.Append(nil, v)) // a Buffer does not fail
		b.WriteString("</string>")
	}
	b.WriteString("</value>\n")
}

func json2Call(id int, method string, params []any) []byte {
	return mustJSON(struct {
		ID      int    `json:"id"`
		Version string `json:"jsonrpc"`
		Method  string `json:"method"`
		Params  []any  `json:"params"`
	}{id, "2.0", method, nonNil(params)})
}

func json1Call(id int, method string, params []any) []byte {
	return mustJSON(struct {
		Method string `json:"method"`
		Params []any  `json:"params"`
		ID     int    `json:"id"`
	}{method, nonNil(params), id})
}

func nonNil(params []any) []any {
	if params == nil {
		return []any{}
	}
	return params
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("client: a parameter that JSON cannot express: %v", err))
	}
	return b
}

func jsonReply(body []byte) (any, error) {
	var r struct {
		Result any             `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if len(r.Error) == 0 || string(r.Error) == "null" {
		return r.Result, nil
	}
	var v2 struct {
		Message string   `json:"message"`
		Data    []string `json:"data"`
	}
	if err := json.Unmarshal(r.Error, &v2); err == nil && v2.Message != "" {
		return nil, &Failure{Code: v2.Message, Params: v2.Data}
	}
	var v1 []string
	if err := json.Unmarshal(r.Error, &v1); err != nil || len(v1) == 0 {
		return nil, fmt.Errorf("answer: error %s", r.Error)
	}
	return nil, &Failure{Code: v1[0], Params: v1[1:]}
}

// node is any XML element.
type node struct {
	XMLName xml.Name
	Text    string `xml:",chardata"`
	Nodes   []node `xml:",any"`
}

func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	for i := range n.Nodes {
		if n.Nodes[i].XMLName.Local == name {
			return &n.Nodes[i]
		}
	}
	return nil
}

// value is the Go value of a <value> element.
func (n *node) value() any {
	if n == nil {
		return nil
	}
	if len(n.Nodes) == 0 {
		return n.Text
	}
	t := &n.Nodes[0]
	switch t.XMLName.Local {
	case "string":
		return t.Text
	case "boolean":
		return strings.TrimSpace(t.Text) == "1"
	case "int", "i4", "double":
		f, _ := strconv.ParseFloat(strings.TrimSpace(t.Text), 64)
		return f
	case "array":
		out := []any{}
		if data := t.child("data"); data != nil {
			for i := range data.Nodes {
				out = append(out, data.Nodes[i].value())
			}
		}
		return out
	case "struct":
		out := map[string]any{}
		for i := range t.Nodes {
			if name := t.Nodes[i].child("name"); name != nil {
				out[name.Text] = t.Nodes[i].child("value").value()
			}
		}
		return out
	}
	return t.Text
}

func xmlReply(body []byte) (any, error) {
	var doc node
	if err := xml.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if f := doc.child("fault"); f != nil {
		return nil, fmt.Errorf("answer: fault %v", f.child("value").value())
	}
	v, ok := doc.child("params").child("param").child("value").value().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("answer: no struct in %.200q", body)
	}
	if v["Status"] == "Success" {
		return v["Value"], nil
	}
	desc, _ := v["ErrorDescription"].([]any)
	if len(desc) == 0 {
		return nil, fmt.Errorf("answer: status %v", v["Status"])
	}
	f := &Failure{Code: fmt.Sprint(desc[0])}
	for _, p := range desc[1:] {
		f.Params = append(f.Params, fmt.Sprint(p))
	}
	return nil, f
}
