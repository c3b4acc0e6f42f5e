//go:build linux

// Package node is what the processes of a simulated dom0 have in common: their
// setup, the control pipe, threads, log lines and the truth.
package node

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/thread"
	"github.com/xenserver/dtagent/testenv/truth"
)

// File descriptors that the launcher gives each process.
const (
	CommandFD = 3 // lines of config.Setup first, then config.Command
	AnswerFD  = 4 // one line of config.Answer for each
)

// Proc is this process.
type Proc struct {
	Name      string // in log lines and on the switch
	Component string // as the truth has it
	Setup     config.Setup
	Truth     *truth.Writer
	Host      string

	knobs   atomic.Pointer[config.Knobs]
	traced  atomic.Bool                                // an Observer is enabled for this process
	obey    atomic.Pointer[func(config.Command) error] // further commands
	log     systemLog
	threads atomic.Int64 // OCaml's own numbers of threads
	main    *Thread
}

// Start takes the setup from the launcher and opens the log. The calling
// goroutine becomes the main thread's for good.
func Start(name, component string) (*Proc, error) {
	runtime.LockOSThread()
	thread.Reserve(8)
	in := bufio.NewReader(os.NewFile(CommandFD, "commands"))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	p := &Proc{Name: name, Component: component}
	if err := json.Unmarshal(line, &p.Setup); err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	unix.CloseOnExec(CommandFD)
	unix.CloseOnExec(AnswerFD)
	p.knobs.Store(&p.Setup.Options.Knobs)
	if !p.Setup.Options.NoTruth {
		if p.Truth, err = truth.NewWriter(p.Setup.Root, name); err != nil {
			return nil, err
		}
	}
	if name != "rsyslogd" {
		if err := p.log.open(); err != nil {
			return nil, err
		}
	}
	p.main = &Thread{P: p}
	go p.control(in)
	return p, nil
}

// Main is the main thread.
func (p *Proc) Main() *Thread { return p.main }

// Knobs are those of now.
func (p *Proc) Knobs() *config.Knobs { return p.knobs.Load() }

// Observe says whether an Observer is enabled for this process.
func (p *Proc) Observe(on bool) { p.traced.Store(on) }

// Native is the state of this process's own tracing.
func (p *Proc) Native() config.Native {
	switch k := p.Knobs(); {
	case !p.Setup.Options.NativeByObserver:
		return k.Native
	case !p.traced.Load():
		return config.NativeOff
	case k.Native == config.NativeBare:
		return config.NativeBare
	}
	return config.NativeOn
}

// Obey makes f obey the launcher's commands too.
func (p *Proc) Obey(f func(config.Command) error) { p.obey.Store(&f) }

// Ready tells the launcher that this process serves; value goes with it.
func (p *Proc) Ready(value any) error { return answer(value, nil) }

var answers sync.Mutex // one line at a time

func answer(value any, err error) error {
	var a config.Answer
	if err != nil {
		a.Err = err.Error()
	}
	if value != nil {
		b, err := json.Marshal(value)
		if err != nil {
			return err
		}
		a.Value = b
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	answers.Lock()
	defer answers.Unlock()
	return sys.Write(AnswerFD, append(line, '\n'))
}

// control obeys the launcher until it goes away, and the process with it.
func (p *Proc) control(in *bufio.Reader) {
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			_ = p.Truth.Flush() // nobody is left to tell
			os.Exit(0)
		}
		var c config.Command
		err = json.Unmarshal(line, &c)
		if err == nil && c.Set != nil {
			p.knobs.Store(c.Set)
		}
		if err == nil && c.Flush {
			err = p.Truth.Flush()
		}
		if f := p.obey.Load(); err == nil && f != nil {
			err = (*f)(c)
		}
		if err := answer(nil, err); err != nil {
			os.Exit(1)
		}
	}
}

// Thread is what a thread of the toolstack knows about itself.
type Thread struct {
	P          *Proc
	ID         int64  // OCaml's number, not the kernel's
	Name       string // in log lines; the listener's for xapi's connections
	Tag        string // task tag in log lines, `VM.start R:8ae06e1ea3d1`
	Trace      string // log field two, "" for none
	Parent     string // ID of the truth entry that new ones are children of
	Background bool   // for new truth entries
	TID        uint32
}

// Go runs f in a thread cloned by the calling thread.
func (p *Proc) Go(name string, f func(t *Thread)) {
	id := p.threads.Add(1)
	err := thread.Start(func() {
		f(&Thread{P: p, ID: id, Name: name, TID: uint32(unix.Gettid())})
	})
	if err != nil {
		p.main.Log(Error, "threadext", "Thread.create: %v", err)
	}
}

// Level is a log level.
type Level uint8

// Levels.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

var levels = [...]struct {
	priority string // of facility local5
	text     string
}{{"<175>", "debug"}, {"<174>", " info"}, {"<172>", " warn"}, {"<171>", "error"}}

// muted are the modules that a dom0's configuration does not log.
var muted = map[string]bool{"http": true, "db_write": true, "redo_log": true, "api_readonly": true, "tracing": true}

// Log sends one line to the system log as Debug and Syslog of xen-api do.
func (t *Thread) Log(l Level, module, format string, args ...any) {
	k := t.P.Knobs()
	if muted[module] && !k.Verbose {
		return
	}
	b := make([]byte, 0, 512)
	b = append(b, levels[l].priority...)
	b = time.Now().AppendFormat(b, "Jan _2 15:04:05 ")
	b = append(b, t.P.Name...)
	b = append(b, ": ["...)
	b = append(b, levels[l].text...)
	b = append(b, '|')
	if k.LogTrace && t.P.Native() != config.NativeOff {
		b = append(b, t.Trace...)
	}
	b = append(b, '|')
	b = strconv.AppendInt(b, t.ID, 10)
	b = append(b, ' ')
	b = append(b, t.Name...)
	b = append(b, '|')
	b = escape(b, t.Tag)
	b = append(b, '|')
	b = append(b, module...)
	b = append(b, "] "...)
	if len(args) == 0 {
		b = escape(b, format)
	} else {
		b = escape(b, fmt.Sprintf(format, args...))
	}
	t.P.log.send(b)
}

// Audit sends a line of the audit log, which has its own form.
func (t *Thread) Audit(format string, args ...any) {
	trace := ""
	if t.P.Knobs().LogTrace && t.P.Native() != config.NativeOff {
		trace = t.Trace
	}
	now := time.Now()
	t.P.log.send(fmt.Appendf(nil, "<182>%s %s: [%s|audit|%s|%d %s|%s|audit] %s", now.Format("Jan _2 15:04:05"), t.P.Name,
		now.UTC().Format("20060102T15:04:05.000Z"), trace, t.ID, t.Name, t.Tag, fmt.Sprintf(format, args...)))
}

// escape appends s as the log library of xen-api does: backslash doubled in
// messages of control characters, bytes outside ASCII's printable range as \xHH.
func escape(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\\':
			b = append(b, '\\', '\\')
		case c < 0x20 || c > 0x7e:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// Span is a truth entry in the making.
type Span struct {
	t      *Thread
	before string
	truth.Entry
}

// Begin starts an entry, child of the thread's current one, and makes it the
// current one until End.
func (t *Thread) Begin(k truth.Kind, name string) *Span {
	s := &Span{t: t, before: t.Parent, Entry: truth.Entry{
		ID: t.P.Truth.ID(), Parent: t.Parent, Kind: k, Name: name, Component: t.P.Component, Background: t.Background,
		Start: truth.Now(), TGID: uint32(os.Getpid()), TID: t.TID, Tag: LastWord(t.Tag),
	}}
	t.Parent = s.ID
	return s
}

// End finishes the entry.
func (s *Span) End() {
	if s.Entry.End == 0 {
		s.Entry.End = truth.Now()
	}
	s.t.Parent = s.before
	s.t.P.Truth.Add(s.Entry)
}

// LastWord is the last word of a task tag, its R: or D: name.
func LastWord(s string) string {
	for i := len(s) - 1; i > 0; i-- {
		if s[i] == ' ' {
			return s[i+1:]
		}
	}
	return s
}

// Delay spends the delay of a layer, if one is set, and records it.
func (t *Thread) Delay(l config.Layer) {
	d := t.P.Knobs().Delay[l]
	if d <= 0 {
		return
	}
	s := t.Begin(truth.Delay, string(l))
	sys.Sleep(d)
	s.End()
}

// Tick is the life of the OCaml runtime's tick thread: 20 wake-ups a second,
// always.
func Tick(*Thread) {
	for {
		sys.Sleep(50 * time.Millisecond)
	}
}
