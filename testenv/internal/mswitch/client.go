//go:build linux

package mswitch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// wire is one connection of a client: three writes for a request, reads of 64 KiB.
type wire struct {
	fd  int
	buf []byte
	in  []byte
}

func dial(token string) (*wire, error) {
	fd, err := sys.ConnectUnix(Socket)
	if err != nil {
		return nil, err
	}
	w := &wire{fd: fd, buf: make([]byte, 65536)}
	if _, err := w.do("GET", "/login/"+token, ""); err != nil {
		return nil, fmt.Errorf("switch: login: %w", err)
	}
	return w, nil
}

// do makes one request and returns the body of its answer.
func (w *wire) do(method, path, body string) (string, error) {
	if err := sys.Write(w.fd, []byte(method+" "+path+" HTTP/1.1\r\n")); err != nil {
		return "", err
	}
	if err := sys.Write(w.fd, []byte("user-agent: cohttp\r\ncontent-length: "+strconv.Itoa(len(body))+
		"\r\nconnection: keep-alive\r\nhost: localhost\r\n\r\n")); err != nil {
		return "", err
	}
	if body != "" {
		if err := sys.Write(w.fd, []byte(body)); err != nil {
			return "", err
		}
	}
	w.in = w.in[:0]
	for {
		n, err := sys.Read(w.fd, w.buf)
		if err != nil {
			return "", err
		}
		w.in = append(w.in, w.buf[:n]...)
		head := bytes.Index(w.in, []byte("\r\n\r\n"))
		if head < 0 {
			continue
		}
		_, after, ok := strings.Cut(string(w.in[:head]), "content-length: ")
		after, _, _ = strings.Cut(after, "\r\n")
		length, err := strconv.Atoi(after)
		if !ok || err != nil {
			return "", fmt.Errorf("switch: answer %.200q", w.in)
		}
		if len(w.in) >= head+4+length {
			if !bytes.HasPrefix(w.in, []byte("HTTP/1.1 200")) {
				return "", fmt.Errorf("switch: answer %.200q", w.in)
			}
			return string(w.in[head+4 : head+4+length]), nil
		}
	}
}

type transferred struct {
	Messages []struct {
		ID struct {
			Queue string
			N     int64
		}
		Message struct {
			Payload string          `json:"payload"`
			Kind    json.RawMessage `json:"kind"`
		}
	}
	Next string
}

// UnmarshalJSON takes the switch's pairs for structs.
func (t *transferred) UnmarshalJSON(b []byte) error {
	var raw struct {
		Messages [][2]json.RawMessage `json:"messages"`
		Next     string               `json:"next"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	t.Next = raw.Next
	t.Messages = t.Messages[:0]
	for _, pair := range raw.Messages {
		t.Messages = append(t.Messages, struct {
			ID struct {
				Queue string
				N     int64
			}
			Message struct {
				Payload string          `json:"payload"`
				Kind    json.RawMessage `json:"kind"`
			}
		}{})
		m := &t.Messages[len(t.Messages)-1]
		if err := json.Unmarshal(pair[0], &[]any{&m.ID.Queue, &m.ID.N}); err != nil {
			return err
		}
		if err := json.Unmarshal(pair[1], &m.Message); err != nil {
			return err
		}
	}
	return nil
}

// transfer asks for what is behind from on one queue.
func (w *wire) transfer(queue, from string) (*transferred, error) {
	body := `{"timeout":30.0,"queues":[` + Quoted(queue) + `]}`
	if from != "" {
		body = `{"from":` + Quoted(from) + `,"timeout":30.0,"queues":[` + Quoted(queue) + `]}`
	}
	answer, err := w.do("POST", "/transfer", body)
	if err != nil {
		return nil, err
	}
	t := &transferred{}
	if err := json.Unmarshal([]byte(answer), t); err != nil {
		return nil, fmt.Errorf("switch: transfer: %w", err)
	}
	return t, nil
}

// Failure is an answer that is an error: the OCaml constructor and its arguments.
type Failure struct{ Parts []string }

// Error gives the parts.
func (f *Failure) Error() string { return strings.Join(f.Parts, " ") }

// Client makes calls. It has two connections: one for the calling threads, under a
// lock, and one for the thread that gets the answers.
type Client struct {
	p     *node.Proc
	reply string

	mu   sync.Mutex
	wire *wire

	ids atomic.Int64

	waitMu  sync.Mutex
	waiting map[string]chan string // by queue and number
	early   map[string]string
}

// NewClient connects and starts the thread that gets the answers, from the
// calling thread.
func NewClient(p *node.Proc) (*Client, error) {
	c := &Client{p: p, reply: p.Name + ":" + strconv.Itoa(os.Getpid()), waiting: map[string]chan string{}, early: map[string]string{}}
	var err error
	if c.wire, err = dial(c.reply); err != nil {
		return nil, err
	}
	answers, err := dial(c.reply)
	if err != nil {
		return nil, err
	}
	if _, err := c.wire.do("GET", "/transient/"+c.reply, ""); err != nil {
		return nil, err
	}
	p.Go("", func(t *node.Thread) { c.readAnswers(t, answers) })
	return c, nil
}

func (c *Client) readAnswers(t *node.Thread, w *wire) {
	from := ""
	for {
		got, err := w.transfer(c.reply, from)
		if err != nil {
			return // the switch is gone, and with it this dom0
		}
		from = got.Next
		for _, m := range got.Messages {
			if _, err := w.do("GET", "/ack/"+c.reply+"/"+strconv.FormatInt(m.ID.N, 10), ""); err != nil {
				return
			}
			var of struct {
				Queue string
				N     int64
			}
			if json.Unmarshal(m.Message.Kind, &[]any{new(string), &[]any{&of.Queue, &of.N}}) != nil {
				t.Log(node.Error, "mscgen", "answer without a request: %s", m.Message.Kind)
				continue
			}
			key := of.Queue + " " + strconv.FormatInt(of.N, 10)
			c.waitMu.Lock()
			if ch := c.waiting[key]; ch != nil {
				delete(c.waiting, key)
				ch <- m.Message.Payload
			} else {
				c.early[key] = m.Message.Payload
			}
			c.waitMu.Unlock()
		}
	}
}

// Call calls method on the server of a queue and waits for its answer. params
// is the JSON of the parameters, with commas between.
func (c *Client) Call(t *node.Thread, queue, method, params string) (json.RawMessage, error) {
	if path := socketOf(queue); path != "" && t.P.Setup.Options.NoSwitch {
		return c.callSocket(t, path, method, params)
	}
	body := `{"method":` + Quoted(method) + `,"params":[` + params + `],"id":` + strconv.FormatInt(c.ids.Add(1), 10) + `}`
	c.mu.Lock()
	s := t.Begin(truth.Send, "send "+queue+" "+method)
	defer s.End()
	var named Params
	if json.Unmarshal([]byte(params), &named) == nil {
		_, sender := node.ParseDebugInfo(named.DebugInfo())
		s.Native = sender.String()
	}
	n, err := c.post(queue, body)
	c.mu.Unlock()
	if err != nil {
		s.Err = err.Error()
		return nil, err
	}
	key := queue + " " + n
	s.Detail = key
	s.Keys = append(s.Keys, "switch:"+key)
	answer := c.answer(key)
	s.Entry.End = truth.Now()
	var r struct {
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal([]byte(answer), &r); err != nil {
		return nil, fmt.Errorf("switch: %s: %w", method, err)
	}
	if len(r.Error) > 0 && string(r.Error) != "null" {
		var parts []json.RawMessage
		f := &Failure{}
		if json.Unmarshal(r.Error, &parts) == nil {
			for _, p := range parts {
				var one string
				if json.Unmarshal(p, &one) == nil {
					f.Parts = append(f.Parts, one)
					continue
				}
				var more []string
				_ = json.Unmarshal(p, &more) // anything else is shown as nothing
				f.Parts = append(f.Parts, more...)
			}
		}
		s.Err = f.Error()
		return nil, f
	}
	return r.Result, nil
}

// post makes sure that the queue exists and puts the call into it.
func (c *Client) post(queue, body string) (string, error) {
	if _, err := c.wire.do("GET", "/persistent/"+queue, ""); err != nil {
		return "", err
	}
	got, err := c.wire.do("POST", "/request/"+queue+"/"+c.reply, body)
	if err != nil {
		return "", err
	}
	var ids [][2]json.RawMessage
	if err := json.Unmarshal([]byte(got), &ids); err != nil {
		return "", fmt.Errorf("switch: request: %w", err)
	}
	if len(ids) == 0 {
		return "", errors.New("switch: queue deleted")
	}
	return string(ids[0][1]), nil
}

func (c *Client) answer(key string) string {
	c.waitMu.Lock()
	if a, ok := c.early[key]; ok {
		delete(c.early, key)
		c.waitMu.Unlock()
		return a
	}
	ch := make(chan string, 1)
	c.waiting[key] = ch
	c.waitMu.Unlock()
	return <-ch
}
