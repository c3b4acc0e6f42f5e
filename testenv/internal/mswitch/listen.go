//go:build linux

package mswitch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Params are the parameters of a call: those with a name stand in one object, which
// comes first; those without, which squeezed and networkd have, follow it and are
// named "0", "1", ….
type Params map[string]json.RawMessage

func paramsOf(list []json.RawMessage) (Params, error) {
	p := Params{}
	if len(list) > 0 && len(list[0]) > 0 && list[0][0] == '{' {
		if err := json.Unmarshal(list[0], &p); err != nil {
			return nil, err
		}
		list = list[1:]
	}
	for i, v := range list {
		p[strconv.Itoa(i)] = v
	}
	return p, nil
}

// String is a member that is a string.
func (p Params) String(name string) string {
	var s string
	_ = json.Unmarshal(p[name], &s) // absent or of another kind: ""
	return s
}

// Int is a member that is a number.
func (p Params) Int(name string) int64 {
	var n int64
	_ = json.Unmarshal(p[name], &n) // absent or of another kind: 0
	return n
}

// DebugInfo is the task tag's and trace's carrier, by either of its names or without
// one.
func (p Params) DebugInfo() string {
	for _, name := range []string{"debug_info", "dbg", "0"} {
		if s := p.String(name); s != "" {
			return s
		}
	}
	return ""
}

// Rest are the parameters without a name, strings and numbers as they are.
func (p Params) Rest() (out []string) {
	for i := 0; ; i++ {
		v, ok := p[strconv.Itoa(i)]
		if !ok {
			return out
		}
		text := string(v)
		_ = json.Unmarshal(v, &text) // no string: its JSON
		out = append(out, text)
	}
}

// Handler answers one call: JSON, or a *Failure.
type Handler func(t *node.Thread, method string, p Params) (string, error)

// Listen serves a queue with two connections of its own: on the first, one
// thread (cloned by the caller) waits for messages and clones a thread for each;
// these share the second.
func Listen(p *node.Proc, queue string, h Handler) error {
	if path := socketOf(queue); path != "" && p.Setup.Options.NoSwitch {
		return listenSocket(p, path, h)
	}
	token := p.Name + ":" + strconv.Itoa(os.Getpid())
	in, err := dial(token)
	if err != nil {
		return err
	}
	out, err := dial(token)
	if err != nil {
		return err
	}
	if _, err := in.do("GET", "/persistent/"+queue, ""); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	var mu sync.Mutex
	p.Go("", func(*node.Thread) {
		from := ""
		for {
			got, err := in.transfer(queue, from)
			if err != nil {
				return // the switch is gone, and with it this dom0
			}
			from = got.Next
			for _, m := range got.Messages {
				var reply string
				if json.Unmarshal(m.Message.Kind, &[]any{new(string), &reply}) != nil {
					continue // a response, which nobody here waits for
				}
				taken := truth.Now()
				p.Go("", func(t *node.Thread) {
					s := t.Begin(truth.RPC, "")
					s.Start = taken
					s.Detail = queue + " " + strconv.FormatInt(m.ID.N, 10)
					s.ParentKey = "switch:" + s.Detail
					answer := call(t, s, h, m.Message.Payload)
					mu.Lock()
					_, err := out.do("POST", fmt.Sprintf("/response/%s/%s/%d", reply, queue, m.ID.N), answer)
					s.Entry.End = truth.Now()
					if err == nil {
						_, err = out.do("GET", fmt.Sprintf("/ack/%s/%d", queue, m.ID.N), "")
					}
					mu.Unlock()
					if err != nil {
						s.Err = err.Error()
					}
					s.End()
				})
			}
		}
	})
	return nil
}

func call(t *node.Thread, s *node.Span, h Handler, payload string) string {
	var c struct {
		Method string            `json:"method"`
		Params []json.RawMessage `json:"params"`
	}
	err := json.Unmarshal([]byte(payload), &c)
	var p Params
	if err == nil {
		p, err = paramsOf(c.Params)
	}
	if err != nil {
		s.Err = "malformed"
		return `{"result":null,"error":["Internal_error","malformed call"],"id":0}`
	}
	tag, _ := node.ParseDebugInfo(p.DebugInfo())
	s.Name, s.Tag = c.Method, node.LastWord(tag)
	result, err := h(t, c.Method, p)
	if err != nil {
		var f *Failure
		if !errors.As(err, &f) {
			f = &Failure{Parts: []string{"Internal_error", err.Error()}}
		}
		s.Err = f.Parts[0]
		b := []byte(`{"result":null,"error":[`)
		b = Quote(b, f.Parts[0])
		if len(f.Parts) > 1 {
			b = append(b, ",["...)
			for i, p := range f.Parts[1:] {
				if i > 0 {
					b = append(b, ',')
				}
				b = Quote(b, p)
			}
			b = append(b, ']')
		}
		return string(b) + `],"id":0}`
	}
	return `{"result":` + result + `,"error":null,"id":0}`
}
