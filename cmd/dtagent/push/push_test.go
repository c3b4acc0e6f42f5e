package push

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/correlate"
	"github.com/xenserver/dtagent/observer/bugtool"
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
)

// spanText is a span as the toolstack writes it.
func spanText(id int) string {
	return fmt.Sprintf(`{"tags":{"xs.pool.uuid":"p","xs.observer.name":"dt","xs.host.uuid":"h","service.name":"xapi","span.depth":"2","error":"true","exception.message":"E_%d"},`+
		`"annotations":[{"value":"begun","timestamp":1677671549043901}],"localEndpoint":{"serviceName":"xapi"},"kind":"SERVER","duration":46,"timestamp":1677671549043900,`+
		`"name":"VM.start","parentId":"00f067aa0ba902b7","traceId":"9dda2bd691624f9e2fce578f3a941b87","id":"%016x"}`, id, id)
}

// lineText is a line with the spans from to to-1.
func lineText(from, to int) string {
	var spans []string
	for i := from; i < to; i++ {
		spans = append(spans, spanText(i))
	}
	return "[" + strings.Join(spans, ",") + "]\n"
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	qt.Assert(t, qt.IsNil(os.MkdirAll(filepath.Dir(path), 0o700)))
	if strings.HasSuffix(path, ".zst") {
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b)
		qt.Assert(t, qt.IsNil(err))
		_, _ = w.Write([]byte(text))
		qt.Assert(t, qt.IsNil(w.Close()))
		text = b.String()
	}
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
	return path
}

// sink is a receiver of zipkin-v2 that counts the spans it took.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	spans  map[string]int // by id
	bodies int
	answer func(w http.ResponseWriter, r *http.Request, body []byte) bool // true: it has answered
}

func newSink(t testing.TB, tls bool) *sink {
	s := &sink{spans: map[string]int{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := unzip(t, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bodies++
		if s.answer != nil && s.answer(w, r, body) {
			return
		}
		var spans []zipkin.Span
		if err := json.Unmarshal(body, &spans); err != nil || r.URL.Path != "/api/v2/spans" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v: %v: %.100q", r.URL, r.Header, err, body)
		}
		for _, sp := range spans {
			s.spans[sp.ID]++
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that tests make fail
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func unzip(t testing.TB, r *http.Request) []byte {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			t.Errorf("gzip: %v", err)
			return nil
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Errorf("body: %v", err)
	}
	return b
}

func (s *sink) url() string { return s.URL + "/api/v2/spans" }

// got checks that every span of these numbers came once.
func (s *sink) got(t testing.TB, ids ...int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[string]int{}
	for _, id := range ids {
		want[fmt.Sprintf("%016x", id)] = 1
	}
	qt.Assert(t, qt.DeepEquals(s.spans, want))
}

func upTo(n int) (ids []int) {
	for i := range n {
		ids = append(ids, i)
	}
	return ids
}

func push(t testing.TB, ctx context.Context, path string, o Options) (Summary, error) {
	t.Helper()
	if o.BackOff == 0 {
		o.BackOff = time.Millisecond
	}
	p, err := New(o)
	qt.Assert(t, qt.IsNil(err))
	defer p.Close()
	return p.Run(ctx, path)
}

// plain is a summary without what depends on the time.
func plain(s Summary) Summary {
	s.Seconds, s.Bytes = 0, 0
	if len(s.Troubles) == 0 {
		s.Troubles = nil
	}
	return s
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/xapi-h-1.ndjson", lineText(0, 3)+"\n[]\n  \n"+lineText(3, 4)+lineText(4, 4))
	write(t, dir+"/a/xapi-h-0.ndjson.zst", lineText(4, 6)+lineText(6, 7))
	write(t, dir+"/b/pretty.json", strings.ReplaceAll(lineText(7, 9), ",", ",\n"))
	write(t, dir+"/b/lines.json", lineText(9, 10)+lineText(10, 11))
	write(t, dir+"/b/notes.txt", "nothing")
	write(t, dir+"/b/half.ndjson", lineText(11, 12)+lineText(12, 13)[:100])
	write(t, dir+"/b/unended.ndjson", strings.TrimSpace(lineText(12, 13)))
	write(t, dir+"/b/empty.ndjson", "")
	qt.Assert(t, qt.IsNil(os.Symlink(dir+"/a/xapi-h-1.ndjson", dir+"/b/again.ndjson")))
	s := newSink(t, false)
	var last, total int64
	sum, err := push(t, context.Background(), dir, Options{URL: s.url(), Progress: func(d, n int64) {
		qt.Check(t, qt.IsTrue(d >= last && d <= n))
		last, total = d, n
	}})
	qt.Assert(t, qt.IsNil(err))
	s.got(t, upTo(13)...)
	qt.Check(t, qt.DeepEquals(plain(sum), Summary{Files: 7, FilesTotal: 7, Skipped: 2, Lines: 9, Spans: 13, HalfLines: 1, Requests: 1,
		Troubles: []Trouble{{File: dir + "/b/half.ndjson", Line: 2, Half: true, Text: "half a line at the end of the file, which is still written or was cut off; not sent"}}}))
	qt.Check(t, qt.IsFalse(sum.Failed()))
	qt.Check(t, qt.IsTrue(total > 0 && last == total))

	// One request a line, as xs-trace does.
	s = newSink(t, false)
	sum, err = push(t, context.Background(), dir, Options{URL: s.url(), BodyBytes: 1})
	qt.Assert(t, qt.IsNil(err))
	s.got(t, upTo(13)...)
	qt.Check(t, qt.Equals(sum.Requests, 9))
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"spans.ndjson": lineText(0, 2), "spans.ndjson.zst": lineText(0, 2), "spans.zst": lineText(0, 1) + lineText(1, 2),
		"spans": strings.ReplaceAll(lineText(0, 2), ",", ",\n"), "one span a line": spanText(0) + "\n" + spanText(1),
	} {
		s := newSink(t, false)
		sum, err := push(t, context.Background(), write(t, dir+"/"+name, text), Options{URL: s.url()})
		qt.Assert(t, qt.IsNil(err))
		s.got(t, 0, 1)
		qt.Check(t, qt.Equals(sum.Spans, 2))
	}
	s := newSink(t, false)
	_, err := push(t, context.Background(), dir+"/absent", Options{URL: s.url()})
	qt.Check(t, qt.ErrorMatches(err, ".*absent: no such file or directory"))
	_, err = push(t, context.Background(), t.TempDir(), Options{URL: s.url()})
	qt.Check(t, qt.ErrorMatches(err, ".*no file below it is named .ndjson, .json or .zst"))
	qt.Check(t, qt.Equals(s.bodies, 0))
}

// TestRotated: a file that is compressed between the listing and the reading is
// sent all the same.
func TestRotated(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/x.ndjson.zst", lineText(0, 3))
	var at int64
	n := 0
	f := source{path: dir + "/x.ndjson"}
	qt.Assert(t, qt.IsNil(f.read(&at, func(l line) bool { n += len(l.spans); return true })))
	qt.Check(t, qt.Equals(n, 3))
}

func TestDamage(t *testing.T) {
	dir := t.TempDir()
	whole := write(t, dir+"/cut.ndjson.zst", strings.Repeat(lineText(0, 50), 20))
	b, err := os.ReadFile(whole)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(whole, b[:len(b)/2], 0o600)))
	qt.Assert(t, qt.IsNil(os.WriteFile(dir+"/garbage.ndjson.zst", []byte("this is not zstd at all"), 0o600)))
	write(t, dir+"/lines.ndjson", lineText(1000, 1001)+"garbage\n"+`[{"traceId":"zz","id":"1"}]`+"\n"+lineText(1001, 1002))
	s := newSink(t, false)
	sum, err := push(t, context.Background(), dir, Options{URL: s.url()})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(sum.Failed()))
	qt.Check(t, qt.Equals(sum.FailedFiles, 2))
	qt.Check(t, qt.Equals(sum.FailedLines, 2))
	qt.Check(t, qt.Equals(sum.Files, 1))
	qt.Check(t, qt.Equals(sum.HalfLines, 0))
	var texts []string
	for _, tr := range sum.Troubles {
		texts = append(texts, tr.String())
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{dir + "/cut.ndjson.zst: after line", dir + "/garbage.ndjson.zst: ", dir + "/lines.ndjson: line 2: not zipkin-v2, not sent: ", dir + `/lines.ndjson: line 3: not zipkin-v2, not sent: span "": traceId "zz"`} {
		qt.Check(t, qt.StringContains(all, want))
	}
	qt.Check(t, qt.Equals(s.spans[fmt.Sprintf("%016x", 1001)], 1))
	sent := 0
	for _, n := range s.spans {
		sent += n
	}
	qt.Check(t, qt.Equals(sum.Spans, sent))
}

func TestRetries(t *testing.T) {
	path := write(t, t.TempDir()+"/a.ndjson", lineText(0, 5)+lineText(5, 9))
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		least  time.Duration
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 0},
		{"429", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "1"); w.WriteHeader(429) }, time.Second},
		{"429 for an hour", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, 100 * time.Millisecond},
		{"closes", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0},
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 200 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSink(t, false)
			s.answer = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if s.bodies == 1 {
					c.answer(w, r)
					return true
				}
				return false
			}
			o := Options{URL: s.url(), Timeout: 200 * time.Millisecond}
			if c.name == "429 for an hour" {
				o.AfterMax = 100 * time.Millisecond
			}
			begin := time.Now()
			sum, err := push(t, context.Background(), path, o)
			qt.Assert(t, qt.IsNil(err))
			s.got(t, upTo(9)...)
			qt.Check(t, qt.Equals(sum.Retries, 1))
			qt.Check(t, qt.Equals(sum.Requests, 2))
			qt.Check(t, qt.IsTrue(time.Since(begin) >= c.least), qt.Commentf("%v", time.Since(begin)))
		})
	}
}

// TestGivesUp: a receiver that takes nothing ends the push, which says from
// where on nothing was sent.
func TestGivesUp(t *testing.T) {
	path := write(t, t.TempDir()+"/a.ndjson", lineText(0, 1)+lineText(1, 2)+lineText(2, 3))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	qt.Assert(t, qt.IsNil(err))
	dead := "http://user:secret@" + l.Addr().String() + "/api/v2/spans"
	l.Close()
	for _, c := range []struct {
		name     string
		answer   func(w http.ResponseWriter, r *http.Request)
		requests int // after the first, which is answered well
		says     string
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "on fire", 500) }, 3, "answered 500 Internal Server Error: \"on fire\""},
		{"404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 1, "Is the path right?"},
		{"401", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, 1, "http://USER:PASSWORD@HOST"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, 1, "name the URL that takes the spans"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSink(t, false)
			s.answer = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if s.bodies > 1 {
					c.answer(w, r)
				}
				return s.bodies > 1
			}
			sum, err := push(t, context.Background(), path, Options{URL: s.url(), BodyBytes: 1, Retries: 2})
			qt.Assert(t, qt.IsNotNil(err))
			qt.Check(t, qt.StringContains(err.Error(), c.says))
			qt.Check(t, qt.StringContains(err.Error(), path+": line 2 and what follows it was not sent"))
			qt.Check(t, qt.Equals(sum.Requests, 1+c.requests))
			qt.Check(t, qt.Equals(sum.Spans, 1))
			qt.Check(t, qt.IsTrue(sum.Failed()))
			s.got(t, 0)
		})
	}
	_, err = push(t, context.Background(), path, Options{URL: dead, Retries: -1})
	qt.Assert(t, qt.IsNotNil(err))
	qt.Check(t, qt.StringContains(err.Error(), "connection refused"))
	qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
}

// TestRefusedLines: a line that the receiver does not take is found among those
// it does, even when they went in one request.
func TestRefusedLines(t *testing.T) {
	text := ""
	for i := range 20 {
		text += lineText(3*i, 3*i+3)
	}
	path := write(t, t.TempDir()+"/a.ndjson", text)
	s := newSink(t, false)
	bad := fmt.Sprintf(`"id":"%016x"`, 3*13+1)
	s.answer = func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
		if bytes.Contains(body, []byte(bad)) {
			http.Error(w, "bad span", 400)
			return true
		}
		return false
	}
	sum, err := push(t, context.Background(), path, Options{URL: s.url()})
	qt.Assert(t, qt.IsNil(err))
	ids := upTo(60)
	s.got(t, append(ids[:39:39], ids[42:]...)...)
	qt.Check(t, qt.Equals(sum.FailedLines, 1))
	qt.Check(t, qt.Equals(sum.FailedSpans, 3))
	qt.Check(t, qt.Equals(sum.Lines, 19))
	qt.Assert(t, qt.HasLen(sum.Troubles, 1))
	qt.Check(t, qt.Equals(sum.Troubles[0].String(), path+`: line 14: refused: answered 400 Bad Request: "bad span"`))

	// One that refuses everything is not asked for every line.
	s.answer = func(w http.ResponseWriter, _ *http.Request, _ []byte) bool { w.WriteHeader(422); return true }
	sum, err = push(t, context.Background(), path, Options{URL: s.url()})
	qt.Check(t, qt.ErrorMatches(err, ".*the receiver refused the first 10 lines: answered 422.*"))
	qt.Check(t, qt.Equals(sum.FailedLines, 10))

	// Too large: cut down to spans.
	s = newSink(t, false)
	s.answer = func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
		if bytes.Count(body, []byte("traceId")) > 2 {
			w.WriteHeader(413)
			return true
		}
		return false
	}
	sum, err = push(t, context.Background(), path, Options{URL: s.url()})
	qt.Assert(t, qt.IsNil(err))
	s.got(t, upTo(60)...)
	qt.Check(t, qt.Equals(sum.Lines, 20))
	qt.Check(t, qt.Equals(sum.Spans, 60))
	qt.Check(t, qt.Equals(sum.Bytes, int64(len(text)-20)))
}

func TestTLS(t *testing.T) {
	path := write(t, t.TempDir()+"/a.ndjson", lineText(0, 1))
	s := newSink(t, true)
	_, err := push(t, context.Background(), path, Options{URL: s.url(), Retries: -1})
	qt.Check(t, qt.ErrorMatches(err, ".*certificate.*"))
	ca := t.TempDir() + "/ca.pem"
	qt.Assert(t, qt.IsNil(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600)))
	_, err = push(t, context.Background(), path, Options{URL: s.url(), CAFile: ca})
	qt.Assert(t, qt.IsNil(err))
	s.got(t, 0)
	_, err = push(t, context.Background(), path, Options{URL: s.url(), CAFile: path, Retries: -1})
	qt.Check(t, qt.ErrorMatches(err, ".*no certificate.*"))
}

// TestInterrupt: it ends at once and says how far it came.
func TestInterrupt(t *testing.T) {
	path := write(t, t.TempDir()+"/a.ndjson", lineText(0, 1)+lineText(1, 2)+lineText(2, 3))
	s := newSink(t, false)
	ctx, cancel := context.WithCancel(context.Background())
	s.answer = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if s.bodies == 2 {
			cancel()
			<-r.Context().Done()
		}
		return s.bodies > 1
	}
	sum, err := push(t, ctx, path, Options{URL: s.url(), BodyBytes: 1, Timeout: time.Hour})
	qt.Check(t, qt.ErrorIs(err, context.Canceled))
	qt.Check(t, qt.Equals(sum.Stopped, path+": line 2 and what follows it was not sent"))
	qt.Check(t, qt.Equals(sum.Spans, 1))
	// In the pause before a retry, too.
	ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = push(t, ctx, path, Options{URL: "http://127.0.0.1:1/", BackOff: time.Hour})
	qt.Check(t, qt.ErrorIs(err, context.DeadlineExceeded))
}

func TestOTLP(t *testing.T) {
	path := write(t, t.TempDir()+"/a.ndjson.zst", lineText(0, 2)+lineText(2, 3)+
		`[{"tags":{"xs.host.uuid":"h"},"localEndpoint":{"serviceName":"xenopsd"},"duration":0,"timestamp":1,"name":"root","traceId":"2fce578f3a941b87","id":"d3ee4b91c27d703a"}]`+"\n")
	got := make(chan *coltrace.ExportTraceServiceRequest, 4)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m coltrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(unzip(t, r), &m); err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s: %v", r.URL, err)
		}
		got <- &m
		b, _ := proto.Marshal(&coltrace.ExportTraceServiceResponse{PartialSuccess: &coltrace.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "too old"}})
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(b)
	}))
	defer srv.Close()
	sum, err := push(t, context.Background(), path, Options{URL: "otlp+" + srv.URL + "/v1/traces"})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(sum.Spans, 3))
	qt.Check(t, qt.Equals(sum.FailedSpans, 1))
	qt.Check(t, qt.StringContains(sum.Troubles[0].String(), `1 spans refused: "too old"`))
	type found struct {
		res  map[string]string
		span *tracepb.Span
	}
	byID := map[string]found{}
	for _, rs := range (<-got).GetResourceSpans() {
		res := map[string]string{}
		for _, a := range rs.GetResource().GetAttributes() {
			res[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				byID[hex.EncodeToString(sp.GetSpanId())] = found{res, sp}
			}
		}
	}
	qt.Assert(t, qt.HasLen(byID, 4))
	f := byID["0000000000000001"]
	qt.Check(t, qt.DeepEquals(f.res, map[string]string{"service.name": "xapi", "xs.pool.uuid": "p", "xs.observer.name": "dt", "xs.host.uuid": "h", "host.id": "h"}))
	sp := f.span
	qt.Check(t, qt.Equals(sp.GetName(), "VM.start"))
	qt.Check(t, qt.Equals(sp.GetKind(), tracepb.Span_SPAN_KIND_SERVER))
	qt.Check(t, qt.Equals(hex.EncodeToString(sp.GetTraceId()), "9dda2bd691624f9e2fce578f3a941b87"))
	qt.Check(t, qt.Equals(hex.EncodeToString(sp.GetParentSpanId()), "00f067aa0ba902b7"))
	qt.Check(t, qt.Equals(sp.GetStartTimeUnixNano(), 1677671549043900_000))
	qt.Check(t, qt.Equals(sp.GetEndTimeUnixNano(), 1677671549043946_000))
	qt.Check(t, qt.Equals(sp.GetStatus().GetCode(), tracepb.Status_STATUS_CODE_ERROR))
	qt.Check(t, qt.Equals(sp.GetStatus().GetMessage(), "E_1"))
	attrs := map[string]string{}
	for _, a := range sp.GetAttributes() {
		attrs[a.GetKey()] = a.GetValue().GetStringValue()
	}
	qt.Check(t, qt.DeepEquals(attrs, map[string]string{"span.depth": "2", "exception.message": "E_1"}))
	qt.Assert(t, qt.HasLen(sp.GetEvents(), 1))
	qt.Check(t, qt.Equals(sp.GetEvents()[0].GetName(), "begun"))
	root := byID["d3ee4b91c27d703a"]
	qt.Check(t, qt.Equals(hex.EncodeToString(root.span.GetTraceId()), "00000000000000002fce578f3a941b87"))
	qt.Check(t, qt.HasLen(root.span.GetParentSpanId(), 0))
	qt.Check(t, qt.Equals(root.span.GetKind(), tracepb.Span_SPAN_KIND_INTERNAL))
	qt.Check(t, qt.DeepEquals(root.res, map[string]string{"service.name": "xenopsd", "xs.host.uuid": "h", "host.id": "h"}))
}

// TestSameAsAgent: a span that the agent wrote to a file and that is pushed is
// the one that the agent sends by OTLP itself, but for what files do not hold:
// nanoseconds, and types of tags.
func TestSameAsAgent(t *testing.T) {
	r := &export.Record{
		Span: &correlate.Span{
			TraceID: trace.TraceID{0x31, 15: 0x8c}, SpanID: trace.SpanID{7: 9}, ParentID: trace.SpanID{0: 0x34}, TraceState: "vendor=1",
			Service: "xapi", Name: "VM.start", Kind: trace.SpanKindServer, Start: 1677671549_043900_000, End: 1677671549_143900_000,
			Error: "VM_BAD_POWER_STATE", Link: correlate.LinkTraceparent, Incomplete: "lost 3 events",
			Attributes: []attribute.KeyValue{attribute.String("rpc.method", "VM.start"), attribute.String("xs.xapi.task.uuid", "t")},
		},
		Attributes: export.SortTags([]attribute.KeyValue{attribute.String("xs.host.uuid", "h"), attribute.String("xs.host.name", "h1"), attribute.String("xs.pool.uuid", "p"),
			attribute.String("otel.scope.name", "dtagent"), attribute.String("custom.k", "v")}),
	}
	ok := *r.Span
	ok.SpanID, ok.ParentID, ok.Error, ok.Incomplete, ok.Kind, ok.Link, ok.TraceState = trace.SpanID{1: 1}, trace.SpanID{}, "", "", trace.SpanKindInternal, "", ""
	both := []*export.Record{r, {Span: &ok, Attributes: r.Attributes}}
	want, lost, err := new(otlp.Encoder).Encode(nil, both)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(lost, 0))
	var text []byte
	for i, r := range both {
		text = bugtool.AppendSpan(append(text, "[,"[i]), r.Span, r.ParentID(), r.AppendTags(nil))
	}
	spans, err := zipkin.Parse(append(text, ']'))
	qt.Assert(t, qt.IsNil(err))
	got, err := otlpBody(line{spans: spans})
	qt.Assert(t, qt.IsNil(err))
	parsed := func(body []byte) string {
		var m coltrace.ExportTraceServiceRequest
		qt.Assert(t, qt.IsNil(proto.Unmarshal(body, &m)))
		for _, rs := range m.GetResourceSpans() {
			sortByKey(rs.GetResource().GetAttributes())
			for _, ss := range rs.GetScopeSpans() {
				for _, sp := range ss.GetSpans() {
					sortByKey(sp.GetAttributes())
				}
			}
		}
		return prototext.MarshalOptions{Multiline: true}.Format(&m)
	}
	qt.Check(t, qt.Equals(strings.ReplaceAll(parsed(got), "  ", " "), strings.ReplaceAll(parsed(want), "  ", " ")))
}

func sortByKey(attrs []*commonpb.KeyValue) {
	slices.SortFunc(attrs, func(a, b *commonpb.KeyValue) int { return strings.Compare(a.GetKey(), b.GetKey()) })
}

// TestNative pushes the toolstack's own file.
func TestNative(t *testing.T) {
	const path = "../../../observer/bugtool/testdata/native.ndjson.zst"
	want := map[string]zipkin.Span{}
	qt.Assert(t, qt.IsNil(zipkin.ReadPath(path, func(s zipkin.Span) { want[s.ID] = s })))
	qt.Assert(t, qt.IsTrue(len(want) > 100))
	s := newSink(t, false)
	got := map[string]zipkin.Span{}
	s.answer = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
		spans, err := zipkin.Parse(body)
		qt.Check(t, qt.IsNil(err))
		for _, sp := range spans {
			got[sp.ID] = sp
		}
		return true
	}
	sum, err := push(t, context.Background(), path, Options{URL: s.url()})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.DeepEquals(got, want))
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m coltrace.ExportTraceServiceRequest
		qt.Check(t, qt.IsNil(proto.Unmarshal(unzip(t, r), &m)))
		for _, rs := range m.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				n += len(ss.GetSpans())
			}
		}
	}))
	defer srv.Close()
	again, err := push(t, context.Background(), path, Options{URL: "otlp+" + srv.URL})
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(n, sum.Spans))
	qt.Check(t, qt.Equals(again.Spans, sum.Spans))
	t.Logf("%d spans, %d bytes", sum.Spans, sum.Bytes)
}

func TestBadURL(t *testing.T) {
	for _, u := range []string{"", "host:9411", "ftp://host/", "http://", "otlp+grpc://h", "http://user:secret@h:bad/"} {
		_, err := New(Options{URL: u})
		qt.Assert(t, qt.IsNotNil(err), qt.Commentf("%s", u))
		qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "secret")))
	}
}

func FuzzReadLines(f *testing.F) {
	f.Add([]byte(lineText(0, 2) + "x\n[]\n" + lineText(0, 1)[:30]))
	f.Add([]byte("[{\"annotations\":[{}]}]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := readLines(bytes.NewReader(text), func(l line) bool {
			if l.err != nil {
				return true
			}
			for _, body := range []func(line) ([]byte, error){zipkinBody, otlpBody} {
				if _, err := body(l); err != nil {
					t.Errorf("%q: %v", l.raw, err)
				}
			}
			return true
		})
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}

// BenchmarkPush compares joined lines with one request a line, to a receiver on
// this host that answers at once and to one 5 ms away.
func BenchmarkPush(b *testing.B) {
	var text strings.Builder
	const lines, each = 400, 10
	for i := range lines {
		text.WriteString(lineText(i*each, i*each+each))
	}
	path := write(b, b.TempDir()+"/a.ndjson", text.String())
	for _, form := range []string{"zipkin", "otlp"} {
		for _, away := range []time.Duration{0, 5 * time.Millisecond} {
			for _, size := range []int{1, 64 << 10, 1 << 20, 4 << 20} {
				b.Run(fmt.Sprintf("%s/away=%v/batch=%d", form, away, size), func(b *testing.B) {
					srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						time.Sleep(away)
					}))
					defer srv.Close()
					url := srv.URL
					if form == "otlp" {
						url = "otlp+" + url
					}
					for b.Loop() {
						if sum, err := push(b, context.Background(), path, Options{URL: url, BodyBytes: size}); err != nil || sum.Spans != lines*each {
							b.Fatal(sum, err)
						}
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*lines*each), "ns/span")
				})
			}
		}
	}
}
