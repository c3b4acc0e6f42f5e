package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/judge"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/probes/recording"
)

const (
	maxReaders  = 16               // of the trace stream at once
	readerQueue = 8192             // spans that wait for one reader; beyond it the reader is dropped
	patience    = 10 * time.Second // for a peer to send its request or to take a piece of the answer
)

// Sources are what a Server gets its answers from. Its functions are called by
// several goroutines.
type Sources struct {
	Status func() Status
	// Record begins a recording of what the engine is given; the Server leaves the Tap.
	Record func() (*recording.Header, *recording.Tap, error)
	// IO has the disks of guests watched, until the Watch is closed.
	IO func(context.Context) (judge.Watch, error)
	// Verdict watches them for so long, says how far it is, and what holds them up.
	Verdict func(context.Context, time.Duration, func(time.Duration)) (*judge.Report, error)
	// Cost measures for so long.
	Cost func(context.Context, time.Duration) (Cost, error)
}

// Server answers on the control socket. Its methods may be used by several
// goroutines.
type Server struct {
	from Sources
	http *http.Server
	stop chan struct{}

	io      atomic.Int32 // who watch disks
	watched atomic.Int32 // len(readers), to be asked without the lock
	mu      sync.Mutex
	readers map[*reader]bool
	stopped bool
}

// reader is one peer that follows the trace stream.
type reader struct {
	spans   chan *correlate.Span // closed by whoever takes it out of Server.readers
	dropped uint64               // set before spans is closed
}

// NewServer returns a Server that tells what from has.
func NewServer(from Sources, log *slog.Logger) *Server {
	s := &Server{from: from, stop: make(chan struct{}), readers: map[*reader]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.serveStatus)
	mux.HandleFunc("GET /trace", s.serveTrace)
	mux.HandleFunc("GET /record", s.serveRecord)
	mux.HandleFunc("GET /io", s.serveIO)
	mux.HandleFunc("GET /verdict", s.serveVerdict)
	mux.HandleFunc("GET /cost", s.serveCost)
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: patience,
		ReadTimeout:       patience,
		IdleTimeout:       patience,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on ln until Close. It returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close ends the trace streams with a notice, waits up to a second for peers
// and closes the listener. It may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) == nil {
		return nil
	}
	return s.http.Close()
}

// Publish hands a span to all readers of the trace stream. It never blocks: a
// reader that is too slow is dropped, and told.
func (s *Server) Publish(sp *correlate.Span) {
	if s.watched.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.readers {
		select {
		case r.spans <- sp:
		default:
			r.dropped++
			s.leave(r)
		}
	}
}

func (s *Server) join() (*reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.readers) >= maxReaders {
		return nil, fmt.Errorf("%d readers follow the traces already", maxReaders)
	}
	r := &reader{spans: make(chan *correlate.Span, readerQueue)}
	s.readers[r] = true
	s.watched.Store(int32(len(s.readers)))
	return r, nil
}

// leave takes r out; the caller holds the lock.
func (s *Server) leave(r *reader) {
	if s.readers[r] {
		delete(s.readers, r)
		close(r.spans)
		s.watched.Store(int32(len(s.readers)))
	}
}

// takesLong lets an answer take as long as it does. The context ends when the peer goes
// or the Server stops.
func (s *Server) takesLong(w http.ResponseWriter, req *http.Request) (*http.ResponseController, context.Context, context.CancelFunc) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the peer has nothing more to say
	_ = rc.SetWriteDeadline(time.Time{})
	ctx, cancel := context.WithCancel(req.Context())
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return rc, ctx, cancel
}

func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.from.Status())
}

func (s *Server) serveTrace(w http.ResponseWriter, req *http.Request) {
	r, err := s.join()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer func() {
		s.mu.Lock()
		s.leave(r)
		s.mu.Unlock()
	}()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the peer has nothing more to say
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	send := func(v any) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(patience))
		return enc.Encode(v) == nil
	}
	flush := func() bool {
		_ = rc.SetWriteDeadline(time.Now().Add(patience))
		return rc.Flush() == nil
	}
	if !flush() { // the header tells the peer that it is heard from now on
		return
	}
	for {
		select {
		case sp, ok := <-r.spans:
			if !ok {
				send(Notice{Notice: "too slow: the agent does not wait for readers", Dropped: r.dropped})
				return
			}
			if !send(zipkin.FromSpan(sp)) || len(r.spans) == 0 && !flush() {
				return
			}
		case <-req.Context().Done():
			return
		case <-s.stop:
			for len(r.spans) > 0 {
				sp, ok := <-r.spans
				if !ok || !send(zipkin.FromSpan(sp)) {
					return
				}
			}
			send(Notice{Notice: "the agent stops"})
			return
		}
	}
}
