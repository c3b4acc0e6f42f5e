package remote

import (
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/export"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// receiver is a zipkin receiver that keeps the ids of the spans that it took.
type receiver struct {
	mu       sync.Mutex
	got      map[string]int
	requests int
	largest  int // most spans in one request
	plain    bool
	answer   func(w http.ResponseWriter, r *http.Request, ids []string) bool // tells whether it took them; nil: 202
}

func newReceiver() *receiver { return &receiver{got: map[string]int{}} }

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" && !rc.plain {
		z, err := gzip.NewReader(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	var spans []struct{ ID string }
	if err := json.NewDecoder(body).Decode(&spans); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var ids []string
	for _, s := range spans {
		ids = append(ids, s.ID)
	}
	rc.mu.Lock()
	rc.requests++
	answer := rc.answer
	rc.largest = max(rc.largest, len(ids))
	rc.mu.Unlock()
	took := true
	if answer != nil {
		// What it says has to be true before it is said.
		rec := httptest.NewRecorder()
		func() {
			defer func() {
				if p := recover(); p != nil {
					if p == takenThenAborted {
						rc.take(ids)
					}
					panic(http.ErrAbortHandler)
				}
			}()
			took = answer(rec, r, ids)
		}()
		if took {
			rc.take(ids)
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
		return
	}
	rc.take(ids)
	w.WriteHeader(http.StatusAccepted)
}

const takenThenAborted = "taken, then aborted"

func (rc *receiver) take(ids []string) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	for _, id := range ids {
		rc.got[id]++
	}
}

func (rc *receiver) setAnswer(f func(w http.ResponseWriter, r *http.Request, ids []string) bool) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	rc.answer = f
}

func (rc *receiver) count() (unique, requests int) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return len(rc.got), rc.requests
}

func (rc *receiver) has(id uint64) bool {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.got[fmt.Sprintf("%016x", id)] > 0
}

// start serves rc over HTTP.
func (rc *receiver) start(t testing.TB) string {
	srv := httptest.NewServer(rc)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return srv.URL + "/api/v2/spans"
}

// record returns a span with that id, of about the size of a real one.
func record(id uint64) *export.Record {
	r := &export.Record{
		Span: &correlate.Span{
			TraceID: trace.TraceID{1: 7}, ParentID: trace.SpanID{0: 0x34, 7: 4}, Service: "xapi", Name: "VM.start", Kind: trace.SpanKindServer,
			Start: 1677671549043900_999, End: 1677671549043900_999 + 46_999, Link: correlate.LinkTraceparent,
			Attributes: []attribute.KeyValue{attribute.Int("http.request.body.size", 312), attribute.String("rpc.method", "VM.start"),
				attribute.String("xs.xapi.task.uuid", fmt.Sprintf("8ae06e1e-a3d1-4b9f-8000-%012x", id))},
		},
		Attributes: observerTags,
	}
	binary.BigEndian.PutUint64(r.Span.SpanID[:], id)
	return r
}

var observerTags = export.SortTags([]attribute.KeyValue{
	attribute.String("xs.pool.uuid", "5ab7a1d0-6c5f-4c3b-9f5e-3d7a5b1c0001"), attribute.String("xs.host.name", "h1"),
	attribute.String("xs.host.uuid", "5ab7a1d0-6c5f-4c3b-9f5e-3d7a5b1c0002"), attribute.String("xs.observer.name", "dt"),
	attribute.String("xs.observer.uuid", "5ab7a1d0-6c5f-4c3b-9f5e-3d7a5b1c0003"), export.KeyScopeName.String("dtagent"),
})

// records returns n records with ids from first on.
func records(first uint64, n int) []*export.Record {
	out := make([]*export.Record, n)
	for i := range out {
		out[i] = record(first + uint64(i))
	}
	return out
}

// balanced fails the test unless the ledger's sum holds and what it calls
// queued is what e holds and what is on disk. Nothing else may be going on.
func balanced(t testing.TB, e *Exporter) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.o.Ledger.Counters()
	spans, files, disk, memory := 0, 0, int64(0), 0
	for _, f := range e.q.frames {
		spans += f.spans
		if f.content != nil {
			memory += len(f.content)
		} else {
			files++
			disk += f.size
		}
	}
	if int(c.Queued) != spans || e.q.spans != spans || e.q.files != files || e.q.disk != disk || e.q.memory != memory {
		t.Fatalf("ledger %+v, queue %d spans %d files %d B %d B, counted %d spans %d files %d B %d B",
			c, e.q.spans, e.q.files, e.q.disk, e.q.memory, spans, files, disk, memory)
	}
	if e.o.Dir == "" || e.lock == nil {
		return
	}
	there, err := scan(e.o.Dir)
	if err != nil && files > 0 {
		t.Fatal(err)
	}
	if len(there) != files {
		t.Fatalf("%d files in the directory, %d in the queue", len(there), files)
	}
}

// give hands a batch over, as an endpoint of the Set does.
func give(t testing.TB, e *Exporter, batch []*export.Record) {
	t.Helper()
	for range batch {
		e.o.Ledger.Produced()
	}
	if err := e.Export(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}
