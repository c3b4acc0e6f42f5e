package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// received is a span that the Collector's OTLP receiver has decoded.
type received struct {
	otlpSpan
	scope      string
	attributes map[string]string
	resource   map[string]string
}

// nanos is how long the span took.
func (r received) nanos() int64 { return r.End - r.Start }

// spans returns what the OTLP receiver has decoded, by span id. Each must have
// come once.
func (c *collector) spans(t *testing.T, observer string) map[string]received {
	t.Helper()
	var all otlpTraces
	c.decoded(t, "traces", &all)
	out := map[string]received{}
	for _, r := range all.ResourceSpans {
		resource := texts(t, r.Resource.Attributes)
		if resource["xs.observer.uuid"] != observer {
			continue
		}
		for _, scope := range r.ScopeSpans {
			for _, s := range scope.Spans {
				_, twice := out[s.SpanID]
				qt.Check(t, qt.IsFalse(twice), qt.Commentf("%s came twice", s.Name))
				out[s.SpanID] = received{s, scope.Scope.Name, texts(t, s.Attributes), resource}
			}
		}
	}
	return out
}

// TestOTLP has the OpenTelemetry Collector's OTLP receiver decode what the agent
// sends: the spans are those of the bugtool files, and the log records and
// metrics agree with them.
func TestOTLP(t *testing.T) {
	c := startCollector(t)
	l := newLab(t, testenv.Options{VMs: 2, Knobs: testenv.Knobs{Fail: map[string]string{"VM_build": "CANNOT_BUILD"}}})
	id := l.observe("endpoints=bugtool", "attributes:dtagent.endpoints=otlp+http://"+c.otlp+"/v1/traces",
		"attributes:dtagent.metrics=true", "attributes:dtagent.logs=true",
		`attributes:quote="\ü/<&>`, "attributes:empty=", "attributes:deployment.environment.name=lab")
	session := l.session()
	ctx := context.Background()
	start := func(vm int, transport string, o client.Options) error {
		_, err := l.dial(transport, o).Call(ctx, "VM.start", session, l.dom0.VMs()[vm].Ref, false, false)
		return err
	}
	// What a caller says is no resource, whatever it is called.
	err := start(0, "unix", client.Options{Traceparent: "00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-01", Tracestate: "vendor=x,other=y",
		Baggage: "host.name=theirs;service.version=1"})
	qt.Assert(t, qt.ErrorMatches(err, "(?s).*CANNOT_BUILD.*"))
	qt.Assert(t, qt.IsNil(l.dom0.Set(testenv.Knobs{})))
	qt.Assert(t, qt.IsNil(start(1, "tcp", client.Options{Shape: client.Node,
		Traceparent: "00-3100a3ead5c4210a99c27e3e5578158d-34991b6261208b65-00", Tracestate: "twice=x,twice=y"})))
	l.calls(300)
	l.traces()
	l.noLosses()
	qt.Assert(t, qt.IsNil(l.agent.Stop())) // the metrics are exported once more

	files := map[string]zipkin.Span{}
	for _, s := range l.spans() {
		files[s.ID] = s
	}
	spans := c.spans(t, id)
	qt.Assert(t, qt.Equals(len(spans), len(files)))
	failed, remote := 0, 0
	said := map[string]bool{} // by callers
	for id, s := range files {
		got := spans[id]
		if s.Tags["error"] != "" {
			failed++
		}
		if s.Link() == "traceparent" {
			remote++
		}
		for _, k := range []string{"host.name", "service.version", "w3c.tracestate"} {
			if v, ok := got.attributes[k]; ok {
				said[k+" "+v] = true
			}
		}
		if got.TraceState != "" {
			said[got.TraceState] = true
		}
		l.sameSpan(got, s)
		if t.Failed() {
			t.FailNow() // the others would say the same
		}
	}
	qt.Check(t, qt.IsTrue(failed > 0 && remote > 0), qt.Commentf("%d failed, %d remote", failed, remote))
	// A tracestate that breaks its rules has no place in that field.
	qt.Check(t, qt.DeepEquals(slices.Sorted(maps.Keys(said)), []string{"host.name theirs", "service.version 1", "vendor=x,other=y", "w3c.tracestate twice=x,twice=y"}))
	logs := sameLogs(t, c, id, files, spans)
	series := sameMetrics(t, c, id, l.dom0.HostUUID(), spans)

	var encodings map[string]map[string]int
	c.decoded(t, "encodings", &encodings)
	for _, signal := range []string{"traces", "metrics", "logs"} {
		qt.Check(t, qt.DeepEquals(slices.Collect(maps.Keys(encodings[signal])), []string{"gzip"}), qt.Commentf("%s", signal))
	}
	t.Logf("%d spans (%d failed, %d below a caller's), %d log records, %d series; requests: %v", len(spans), failed, remote, logs, series, encodings)
}

// sameSpan asserts that what the receiver decoded is the span of the files.
func (l *lab) sameSpan(got received, s zipkin.Span) {
	t := l.t
	t.Helper()
	of := qt.Commentf("%s %s", s.Name, s.ID)
	qt.Check(t, qt.Equals(got.TraceID, s.TraceID), of)
	qt.Check(t, qt.Equals(got.ParentSpanID, s.ParentID), of)
	qt.Check(t, qt.Equals(got.Name, s.Name), of)
	qt.Check(t, qt.Equals(kindName(got.Kind), s.Kind), of)
	qt.Check(t, qt.Equals(got.Start/1000, s.Timestamp), of)
	qt.Check(t, qt.Equals(got.nanos()/1000, s.Duration), of)
	qt.Check(t, qt.Equals(len(got.Events)+len(got.Links), 0), of)
	flags := uint32(otlpSampled | otlpHasRemote)
	if s.Link() == "traceparent" {
		flags |= otlpRemote
	}
	qt.Check(t, qt.Equals(got.Flags, flags), of)

	// Some of the tags are fields, and some the resource.
	tags := maps.Clone(got.attributes)
	tags["otel.scope.name"] = got.scope
	if got.TraceState != "" {
		tags["w3c.tracestate"] = got.TraceState
	}
	message := ""
	if got.Status.Code == otlpFailed {
		tags["error"], message = "true", s.Tags["exception.message"]
	}
	qt.Check(t, qt.Equals(got.Status.Message, message), of)
	resource := maps.Clone(got.resource)
	qt.Check(t, qt.Equals(resource["host.id"], l.dom0.HostUUID()), of)
	qt.Check(t, qt.Equals(resource["host.name"], "lab"), of)
	delete(resource, "host.id") // that of the files is xs.host.uuid
	delete(resource, "host.name")
	qt.Check(t, qt.DeepEquals(slices.Sorted(maps.Keys(resource)), []string{
		"deployment.environment.name", "service.name", "xs.host.name", "xs.host.uuid", "xs.observer.name", "xs.observer.uuid", "xs.pool.uuid"}), of)
	qt.Check(t, qt.Equals(resource["service.name"], s.Service()), of)
	maps.Copy(tags, resource)
	qt.Check(t, qt.DeepEquals(tags, s.Tags), of)
}

// sameLogs asserts that there is a log record of the begin and one of the end of
// each span, and returns how many there are.
func sameLogs(t *testing.T, c *collector, observer string, files map[string]zipkin.Span, spans map[string]received) int {
	t.Helper()
	var all otlpLogs
	c.decoded(t, "logs", &all)
	records := map[[2]string]otlpLogRecord{}
	n := 0
	for _, r := range all.ResourceLogs {
		resource := texts(t, r.Resource.Attributes)
		qt.Check(t, qt.Equals(resource["xs.observer.uuid"], observer))
		qt.Check(t, qt.Equals(resource["service.name"], "dtagent"))
		for _, scope := range r.ScopeLogs {
			for _, x := range scope.LogRecords {
				records[[2]string{x.SpanID, x.Body.StringValue}] = x
				n++
			}
		}
	}
	qt.Check(t, qt.Equals(n, 2*len(spans)))
	for id, span := range spans {
		s := files[id]
		of := qt.Commentf("%s %s", s.Name, id)
		kind := "internal"
		if s.Kind != "" {
			kind = strings.ToLower(s.Kind)
		}
		same := map[string]string{"service.name": s.Service(), "span.name": s.Name, "span.kind": kind}
		if s.ParentID != "" {
			same["parent_id"] = s.ParentID
		}
		begin := records[[2]string{id, "span begin"}]
		qt.Check(t, qt.Equals(begin.TraceID, s.TraceID), of)
		qt.Check(t, qt.Equals(begin.Time, span.Start), of)
		qt.Check(t, qt.Equals(begin.SeverityNumber, otlpInfo), of)
		qt.Check(t, qt.DeepEquals(texts(t, begin.Attributes), same), of)

		end := records[[2]string{id, "span end"}]
		number, text := otlpInfo, "INFO"
		if span.Status.Code == otlpFailed {
			number, text = otlpError, "ERROR"
		}
		qt.Check(t, qt.Equals(end.TraceID, s.TraceID), of)
		qt.Check(t, qt.Equals(end.Time, span.End), of)
		qt.Check(t, qt.Equals(end.SeverityNumber, number), of)
		qt.Check(t, qt.Equals(end.SeverityText, text), of)
		want := maps.Clone(s.Tags)
		maps.Copy(want, same)
		want["duration_us"] = strconv.FormatInt(s.Duration, 10)
		qt.Check(t, qt.DeepEquals(texts(t, end.Attributes), want), of)
	}
	return n
}

// sameMetrics asserts that the last counts and durations are those of the spans,
// and returns how many series there are.
func sameMetrics(t *testing.T, c *collector, observer, host string, spans map[string]received) int {
	t.Helper()
	type key struct{ service, name, kind, status string }
	keyOf := func(s received) key {
		k := key{s.resource["service.name"], s.Name, "SPAN_KIND_INTERNAL", "STATUS_CODE_UNSET"}
		if w := kindName(s.Kind); w != "" {
			k.kind = "SPAN_KIND_" + w
		}
		if s.Status.Code == otlpFailed {
			k.status = "STATUS_CODE_ERROR"
		}
		return k
	}
	want := map[key][]float64{} // seconds
	for _, s := range spans {
		want[keyOf(s)] = append(want[keyOf(s)], float64(s.nanos())/1e9)
	}

	var all otlpMetrics
	c.decoded(t, "metrics", &all)
	calls, durations := map[key]otlpPoint{}, map[key]otlpPoint{}
	last := func(into map[key]otlpPoint, points []otlpPoint) {
		for _, p := range points {
			a := texts(t, p.Attributes)
			k := key{a["service.name"], a["span.name"], a["span.kind"], a["status.code"]}
			qt.Check(t, qt.HasLen(a, 4), qt.Commentf("%v", a))
			if p.Time > into[k].Time {
				into[k] = p
			}
		}
	}
	for _, r := range all.ResourceMetrics {
		resource := texts(t, r.Resource.Attributes)
		qt.Check(t, qt.Equals(resource["xs.observer.uuid"], observer))
		qt.Check(t, qt.Equals(resource["xs.host.uuid"], host))
		qt.Check(t, qt.Equals(resource["service.name"], "dtagent"))
		for _, scope := range r.ScopeMetrics {
			for _, m := range scope.Metrics {
				switch m.Name {
				case "traces.span.metrics.calls":
					qt.Check(t, qt.IsTrue(m.Sum.IsMonotonic))
					qt.Check(t, qt.Equals(m.Sum.AggregationTemporality, otlpCumulative))
					last(calls, m.Sum.DataPoints)
				case "traces.span.metrics.duration":
					qt.Check(t, qt.Equals(m.Unit, "s"))
					qt.Check(t, qt.Equals(m.Histogram.AggregationTemporality, otlpCumulative))
					last(durations, m.Histogram.DataPoints)
				default:
					t.Errorf("a metric %s", m.Name)
				}
			}
		}
	}
	qt.Check(t, qt.Equals(len(calls), len(want)))
	qt.Check(t, qt.Equals(len(durations), len(want)))
	for k, seconds := range want {
		of := qt.Commentf("%v", k)
		qt.Check(t, qt.Equals(calls[k].AsInt, int64(len(seconds))), of)
		d := durations[k]
		qt.Check(t, qt.Equals(d.Count, int64(len(seconds))), of)
		sum, buckets := 0.0, make([]int, len(d.ExplicitBounds)+1)
		for _, s := range seconds {
			sum += s
			buckets[sort.SearchFloat64s(d.ExplicitBounds, s)]++ // a bound is of the bucket below it
		}
		qt.Check(t, qt.IsTrue(math.Abs(d.Sum-sum) < 1e-9*float64(len(seconds))), qt.Commentf("%v: %v s, not %v", k, d.Sum, sum))
		var counts []int
		for _, n := range d.BucketCounts {
			i, err := strconv.Atoi(n)
			qt.Check(t, qt.IsNil(err))
			counts = append(counts, i)
		}
		qt.Check(t, qt.DeepEquals(counts, buckets), of)
		qt.Check(t, qt.Not(qt.HasLen(d.Exemplars, 0)), of)
		for _, x := range d.Exemplars {
			s := spans[x.SpanID]
			qt.Check(t, qt.Equals(s.TraceID, x.TraceID), of)
			qt.Check(t, qt.Equals(keyOf(s), k))
			qt.Check(t, qt.Equals(x.AsDouble, time.Duration(s.nanos()).Seconds()), of)
		}
	}
	return len(want)
}

// TestOTLPCertificate has a receiver with a certificate of a CA of its own: it
// gets the spans of those who name the CA, at once or later, and meanwhile none
// is lost.
func TestOTLPCertificate(t *testing.T) {
	ca, cert, key := certificates(t)
	c := startCollector(t, "-cert", cert, "-key", key)
	l := newLab(t, testenv.Options{})
	words := []string{"endpoints=bugtool", "attributes:dtagent.endpoints=otlp+https://" + c.otlp + "/v1/traces", "attributes:dtagent.logs=true"}
	ctx := context.Background()
	knows := l.observe(append(words, "attributes:dtagent.ca_file="+ca)...)
	other := l.observe(words...)
	l.calls(50)
	endpoint := func(s *control.Status, id, prefix string) *observer.EndpointStats {
		for _, o := range s.Observers {
			for _, e := range o.Endpoints {
				if o.UUID == id && strings.HasPrefix(e.Endpoint, prefix) {
					return &e
				}
			}
		}
		return nil
	}
	// Both senders of the one that does not know the CA say why, and keep all.
	senders := []string{"otlp+https://", "logs to otlp+https://"}
	l.wait("has delivered to the receiver that it can check, and been refused by the other", func(s *control.Status) bool {
		for _, sender := range senders {
			e, o := endpoint(s, knows, sender), endpoint(s, other, sender)
			if e == nil || o == nil || e.Sent < 50 || e.Queued > 0 || o.Queued < 50 || o.LastError == "" {
				return false
			}
		}
		return true
	})
	s := l.status()
	for _, sender := range senders {
		e := endpoint(s, other, sender)
		qt.Check(t, qt.Equals(e.State, "failing"))
		qt.Check(t, qt.Equals(e.Sent, 0))
		qt.Check(t, qt.Equals(e.Lost(), 0))
		qt.Check(t, qt.Equals(e.Queued, e.Produced))
		qt.Check(t, qt.StringContains(e.LastError, "certificate signed by unknown authority"))
		t.Logf("%s: %s", sender, e.LastError)
		qt.Check(t, qt.Equals(endpoint(s, knows, sender).State, "ok"))
	}
	qt.Check(t, qt.HasLen(c.spans(t, other), 0))

	_, err := l.agent.Run(ctx, "observer", "param-set", "uuid="+other, "attributes:dtagent.ca_file="+ca)
	qt.Assert(t, qt.IsNil(err))
	began := time.Now()
	l.wait("has delivered to both", func(s *control.Status) bool {
		for _, sender := range senders {
			if e := endpoint(s, other, sender); e == nil || e.Queued > 0 || e.State != "ok" {
				return false
			}
		}
		return true
	})
	t.Logf("delivered %v after the CA was named", time.Since(began).Round(time.Millisecond))
	l.traces()
	qt.Check(t, qt.Equals(l.exact().Lost(), 0))
	l.noLosses()
	files := map[string]map[string]bool{knows: {}, other: {}}
	for _, s := range l.spans() {
		files[s.Tags["xs.observer.uuid"]][s.ID] = true
	}
	for id, want := range files {
		got := map[string]bool{}
		for s := range c.spans(t, id) {
			got[s] = true
		}
		qt.Check(t, qt.DeepEquals(got, want))
	}
	var logs otlpLogs
	c.decoded(t, "logs", &logs)
	n := 0
	for _, r := range logs.ResourceLogs {
		for _, scope := range r.ScopeLogs {
			n += len(scope.LogRecords)
		}
	}
	qt.Check(t, qt.Equals(n, 2*(len(files[knows])+len(files[other]))))
	t.Logf("%d and %d spans", len(files[knows]), len(files[other]))
}

// certificates makes a CA and a certificate of it for 127.0.0.1, and returns
// their PEM files.
func certificates(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		qt.Assert(t, qt.IsNil(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)))
		return file
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	ownKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	qt.Assert(t, qt.IsNil(err))
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of the receiver"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, issuer, issuer, &caKey.PublicKey, caKey)
	qt.Assert(t, qt.IsNil(err))
	own := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "receiver"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, own, issuer, &ownKey.PublicKey, caKey)
	qt.Assert(t, qt.IsNil(err))
	keyDER, err := x509.MarshalPKCS8PrivateKey(ownKey)
	qt.Assert(t, qt.IsNil(err))
	return write("ca.pem", "CERTIFICATE", caDER), write("receiver.pem", "CERTIFICATE", der), write("receiver.key", "PRIVATE KEY", keyDER)
}
