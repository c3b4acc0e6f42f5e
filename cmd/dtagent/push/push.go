// Package push sends files of spans, as the bugtool collects them, to a
// receiver.
package push

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/otlphttp"
	"github.com/xenserver/dtagent/observer/remote"
	zipkinform "github.com/xenserver/dtagent/observer/zipkin"
)

// Options of a Pusher. Zero values mean the defaults.
type Options struct {
	URL       string        // http(s)://… takes zipkin-v2, otlp+http(s)://… OTLP
	CAFile    string        // what https receivers are checked against; "": the system's and the pool's CA certificates
	Timeout   time.Duration // of one request; 30 s
	Retries   int           // how often a request is tried again; negative: never; 0: 8
	BodyBytes int           // up to which lines are joined into one request; 1 MiB
	BackOff   time.Duration // before the first retry, doubling to 15 s; 500 ms
	AfterMax  time.Duration // longest pause that a receiver may ask for; 1 min

	Progress func(done, total int64)              // bytes of files; may be nil
	Trouble  func(Trouble)                        // as it comes; may be nil
	Retry    func(err error, pause time.Duration) // may be nil
}

// Trouble is what could not be sent.
type Trouble struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"` // 0: the file as such
	Text string `json:"error"`
	Half bool   `json:"half_line,omitempty"` // the end of a file that is still written: not a failure
}

func (t Trouble) String() string {
	if t.Line == 0 {
		return t.Text // names the file
	}
	return fmt.Sprintf("%s: line %d: %s", t.File, t.Line, t.Text)
}

// Summary is what became of a push.
type Summary struct {
	Files       int       `json:"files"`        // read to their end
	FilesTotal  int       `json:"files_total"`  // that there were
	Skipped     int       `json:"skipped"`      // files below a directory that hold no spans by their names
	Lines       int       `json:"lines"`        // sent
	Spans       int       `json:"spans"`        // sent
	Bytes       int64     `json:"bytes"`        // of the lines sent
	FailedLines int       `json:"failed_lines"` // unreadable or refused
	FailedSpans int       `json:"failed_spans"` // refused; those of unreadable lines are not known
	FailedFiles int       `json:"failed_files"` // not to be read to their end
	HalfLines   int       `json:"half_lines"`   // left out at the end of files
	Requests    int       `json:"requests"`
	Retries     int       `json:"retries"`
	Seconds     float64   `json:"seconds"`
	Troubles    []Trouble `json:"troubles"`          // the first of them
	Stopped     string    `json:"stopped,omitempty"` // where, when not all was sent
}

// Failed tells whether something was not sent that should have been.
func (s *Summary) Failed() bool {
	return s.FailedLines > 0 || s.FailedSpans > 0 || s.FailedFiles > 0 || s.Stopped != ""
}

// maxTroubles bounds what is kept of them.
const maxTroubles = 100

// Pusher sends files to one receiver.
type Pusher struct {
	o      Options
	enc    remote.Encoder
	client *remote.Client
	body   func(line) ([]byte, error)
	sum    Summary
	total  int64
}

// New returns a Pusher. It does not connect. The error is one of the URL.
func New(o Options) (*Pusher, error) {
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Retries == 0 {
		o.Retries = 8
	}
	if o.BodyBytes <= 0 {
		o.BodyBytes = 1 << 20
	}
	if o.BackOff <= 0 {
		o.BackOff = 500 * time.Millisecond
	}
	if o.AfterMax <= 0 {
		o.AfterMax = time.Minute
	}
	p := &Pusher{o: o, enc: &zipkinform.Encoder{}, body: zipkinBody}
	if otlphttp.IsEndpoint(o.URL) {
		p.enc, p.body = &otlp.Encoder{}, otlpBody
	}
	bundles := remote.PoolBundles()
	if o.CAFile != "" {
		bundles = nil
	}
	var err error
	p.client, err = remote.NewClient(o.URL, p.enc, remote.ClientOptions{Trust: remote.NewTrust(o.CAFile, bundles...), Timeout: o.Timeout})
	return p, err
}

// Close ends the connection.
func (p *Pusher) Close() { p.client.Close() }

// part is one line in the receiver's form, or some of its spans.
type part struct {
	file   string
	number int
	body   []byte
	spans  int
	lines  int // 1; of a line that was cut the last part has it
	bytes  int // of the line
}

// batch is what one request carries.
type batch struct {
	parts    []part
	read     int64 // of all files, when it was read
	files    int   // that ended before its end
	troubles []Trouble
	failed   Summary // what the troubles count as
}

// Run sends a file, or every span file below a directory. Several lines go in
// one request, in their order. What cannot be read or is refused for its own
// sake is noted and the rest is sent; when the receiver cannot be reached, or
// refuses everything, Run ends with an error and Summary.Stopped says how far it
// came. A done context ends it soon.
func (p *Pusher) Run(ctx context.Context, path string) (Summary, error) {
	begin := time.Now()
	p.sum = Summary{Troubles: []Trouble{}}
	files, skipped, err := sources(path)
	if err != nil {
		return p.sum, err
	}
	p.sum.FilesTotal, p.sum.Skipped, p.total = len(files), skipped, 0
	for _, f := range files {
		p.total += f.size
	}
	p.progress(0)
	// The next batch is read while one is sent.
	ctx, cancel := context.WithCancelCause(ctx)
	batches := make(chan *batch)
	go p.collect(ctx, files, batches)
	for b := range batches {
		if err = p.deliver(ctx, b); err != nil {
			cancel(err)
			break
		}
	}
	if err == nil {
		err = context.Cause(ctx)
		if err != nil && p.sum.Stopped == "" {
			p.sum.Stopped = fmt.Sprintf("after %d of %d files", p.sum.Files, p.sum.FilesTotal)
		}
	}
	cancel(nil)
	for range batches { // until the reader has ended
	}
	p.sum.Seconds = time.Since(begin).Seconds()
	return p.sum, err
}

func (p *Pusher) progress(done int64) {
	if p.o.Progress != nil {
		p.o.Progress(min(done, p.total), p.total)
	}
}

// collect reads the files and gives out batches.
func (p *Pusher) collect(ctx context.Context, files []source, out chan<- *batch) {
	defer close(out)
	b, size := &batch{}, 0
	var read int64
	give := func() bool {
		b.read = read
		select {
		case out <- b:
			b, size = &batch{}, 0
			return true
		case <-ctx.Done():
			return false
		}
	}
	for i := range files {
		f := &files[i]
		before := read
		alive := true
		err := f.read(&read, func(l line) bool {
			if ctx.Err() != nil {
				alive = false
				return false
			}
			t := Trouble{File: f.path, Line: l.number}
			switch {
			case l.half:
				t.Text, t.Half = "half a line at the end of the file, which is still written or was cut off; not sent", true
				b.troubles = append(b.troubles, t)
				b.failed.HalfLines++
				return true
			case l.err == nil && len(l.spans) == 0: // "[]": nothing happened for 30 s
				return true
			case l.err == nil:
				var body []byte
				if body, l.err = p.body(l); l.err == nil {
					if size > 0 && size+len(body) > p.o.BodyBytes {
						if alive = give(); !alive {
							return false
						}
					}
					b.parts = append(b.parts, part{f.path, l.number, body, len(l.spans), 1, len(l.raw)})
					size += len(body)
					return true
				}
			}
			t.Text = fmt.Sprintf("not zipkin-v2, not sent: %v", l.err)
			b.troubles = append(b.troubles, t)
			b.failed.FailedLines++
			return true
		})
		if !alive {
			return
		}
		read = max(read, before+f.size)
		if err != nil {
			b.troubles = append(b.troubles, Trouble{File: f.path, Text: err.Error()})
			b.failed.FailedFiles++
			continue
		}
		b.files++
	}
	give()
}

// deliver sends a batch and enters what became of it.
func (p *Pusher) deliver(ctx context.Context, b *batch) error {
	p.sum.FailedLines += b.failed.FailedLines
	p.sum.FailedFiles += b.failed.FailedFiles
	p.sum.HalfLines += b.failed.HalfLines
	for _, t := range b.troubles {
		p.trouble(t)
	}
	if err := p.send(ctx, b.parts); err != nil {
		return err
	}
	p.sum.Files += b.files
	p.progress(b.read)
	return nil
}

func (p *Pusher) trouble(t Trouble) {
	if len(p.sum.Troubles) < maxTroubles {
		p.sum.Troubles = append(p.sum.Troubles, t)
	}
	if p.o.Trouble != nil {
		p.o.Trouble(t)
	}
}

// send sends parts in one request. If the receiver refuses it for what it holds,
// its halves are sent, down to single lines, or to single spans when it is too
// large.
func (p *Pusher) send(ctx context.Context, parts []part) error {
	if len(parts) == 0 {
		return nil
	}
	body, spans := parts[0].body, 0
	for _, q := range parts {
		spans += q.spans
	}
	if len(parts) > 1 {
		bodies := make([][]byte, len(parts))
		for i := range parts {
			bodies[i] = parts[i].body
		}
		body = p.enc.Join(nil, bodies...)
	}
	err := p.post(ctx, body, spans)
	if err == nil {
		p.sent(parts, spans)
		return nil
	}
	f := export.AsFailure(err, spans)
	var status *remote.StatusError
	errors.As(err, &status)
	first := parts[0]
	switch {
	case f.Retry || f.Cause == export.Redirected || status != nil && !ownFault(status.Code):
		p.sum.Stopped = fmt.Sprintf("%s: line %d and what follows it was not sent", first.file, first.number)
		return fmt.Errorf("%s: %w%s", p.sum.Stopped, err, advice(status))
	case status == nil: // taken, but for some spans
		p.sent(parts, spans-f.Lost)
		p.sum.FailedSpans += f.Lost
		text := err.Error()
		if last := parts[len(parts)-1]; len(parts) > 1 {
			text = fmt.Sprintf("from here up to %s: line %d: %s", last.file, last.number, text)
		}
		p.trouble(Trouble{File: first.file, Line: first.number, Text: text})
		return nil
	case len(parts) > 1:
		if err := p.send(ctx, parts[:len(parts)/2]); err != nil {
			return err
		}
		return p.send(ctx, parts[len(parts)/2:])
	case status.Code == http.StatusRequestEntityTooLarge && spans > 1:
		if a, b, n, ok := p.enc.Split(body); ok {
			half := first
			half.body, half.spans, half.lines, half.bytes = a, n, 0, first.bytes/2
			rest := first
			rest.body, rest.spans, rest.bytes = b, spans-n, first.bytes-first.bytes/2
			if err := p.send(ctx, []part{half}); err != nil {
				return err
			}
			return p.send(ctx, []part{rest})
		}
	}
	p.sum.FailedLines += first.lines
	p.sum.FailedSpans += spans
	p.trouble(Trouble{File: first.file, Line: first.number, Text: "refused: " + err.Error()})
	if p.sum.Spans == 0 && p.sum.FailedLines >= maxRefused {
		p.sum.Stopped = fmt.Sprintf("%s: after line %d nothing was sent", first.file, first.number)
		return fmt.Errorf("%s: the receiver refused the first %d lines: %w%s", p.sum.Stopped, maxRefused, err, advice(status))
	}
	return nil
}

// maxRefused is how many lines a receiver that took none may refuse before it
// gets no more of them.
const maxRefused = 10

func (p *Pusher) sent(parts []part, spans int) {
	p.sum.Spans += spans
	for _, q := range parts {
		p.sum.Lines += q.lines
		p.sum.Bytes += int64(q.bytes)
	}
}

// ownFault tells the answers that speak of the body; others would be the same
// for any.
func ownFault(code int) bool {
	return code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusUnprocessableEntity
}

func advice(status *remote.StatusError) string {
	if status == nil {
		return ""
	}
	switch status.Code {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return ". Is the path right? Zipkin receivers mostly take spans at http://HOST:9411/api/v2/spans, OTLP receivers at otlp+http://HOST:4318/v1/traces"
	case http.StatusUnauthorized, http.StatusForbidden:
		return ". A user and password are given as http://USER:PASSWORD@HOST/…"
	case http.StatusUnsupportedMediaType:
		return ". http:// sends zipkin-v2 JSON, otlp+http:// OTLP protobuf: the receiver may want the other"
	}
	return ""
}

// post makes one request, again and again while that may help.
func (p *Pusher) post(ctx context.Context, body []byte, spans int) error {
	var failed error
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval = p.o.BackOff, 2, 15*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		p.sum.Requests++
		failed = p.client.Post(ctx, body, spans)
		if failed == nil {
			return struct{}{}, nil
		}
		f := export.AsFailure(failed, spans)
		switch {
		case !f.Retry:
			return struct{}{}, backoff.Permanent(failed)
		case f.After > 0:
			return struct{}{}, &backoff.RetryAfterError{Duration: min(f.After, p.o.AfterMax)}
		}
		return struct{}{}, failed
	}, backoff.WithBackOff(b), backoff.WithMaxTries(uint(max(p.o.Retries, 0)+1)), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(_ error, pause time.Duration) {
			p.sum.Retries++
			if p.o.Retry != nil {
				p.o.Retry(failed, pause)
			}
		}))
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return &export.Failure{Err: cause, Retry: true}
	}
	return failed // without what backoff adds
}
