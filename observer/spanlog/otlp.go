package spanlog

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlphttp"
)

// OTLP says where log records are sent. Timeout is of one request; 0: 10 s.
type OTLP struct {
	Endpoint string         // otlp+http://… or otlp+https://…, as for spans
	Trust    otlphttp.Trust // nil: the system's CA certificates; *remote.Trust has the pool's too
	Timeout  time.Duration
}

// NewOTLP returns an exporter that sends the records as OTLP log records. Each
// batch is one request. A failure says whether the batch may be tried again.
func NewOTLP(ob Observer, to OTLP) (export.Exporter, error) {
	u, err := otlphttp.URL(to.Endpoint, otlphttp.Logs)
	if err != nil {
		return nil, fmt.Errorf("span log: %w", err)
	}
	client := otlphttp.NewClient(u, otlphttp.Options{Trust: to.Trust, Timeout: to.Timeout})
	exp, err := otlploghttp.New(context.Background(),
		otlploghttp.WithEndpointURL(u.String()),
		otlploghttp.WithHTTPClient(client),
		otlploghttp.WithCompression(otlploghttp.GzipCompression),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{}),
	)
	if err != nil {
		return nil, fmt.Errorf("span log: OTLP endpoint %s: %w", u.Host, err)
	}
	e := &otlpExporter{exp: exp, client: client}
	// The SDK makes the records, their resource and scope; they are sent by the
	// batch, without the SDK's own queue, which does not say what it drops.
	e.provider = sdklog.NewLoggerProvider(
		sdklog.WithResource(resourceOf(ob)),
		sdklog.WithProcessor(&e.made),
	)
	e.logger = e.provider.Logger("github.com/xenserver/dtagent/observer/spanlog")
	return e, nil
}

func resourceOf(ob Observer) *resource.Resource {
	attrs := []attribute.KeyValue{
		attribute.String("service.name", "dtagent"),
		attribute.String("service.instance.id", ob.HostUUID+"/"+ob.UUID),
	}
	for _, a := range []struct{ key, value string }{
		{"xs.observer.uuid", ob.UUID}, {"xs.observer.name", ob.Name},
		{"xs.host.uuid", ob.HostUUID}, {"xs.host.name", ob.HostName}, {"xs.pool.uuid", ob.PoolUUID},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, valid(short(a.value, maxName))))
		}
	}
	return resource.NewSchemaless(attrs...)
}

// valid makes s UTF-8, as protobuf asks for.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

type otlpExporter struct {
	exp      *otlploghttp.Exporter
	client   *http.Client
	provider *sdklog.LoggerProvider
	logger   otellog.Logger
	made     collector
	span     span // scratch
}

func (e *otlpExporter) Export(ctx context.Context, batch []*export.Record) error {
	e.made.records = e.made.records[:0]
	defer func() { clear(e.made.records[:cap(e.made.records)]) }()
	now := time.Now()
	for _, r := range batch {
		e.span.set(r)
		e.emit(now)
	}
	e.span.clear()
	ctx, answer := otlphttp.WithAnswer(ctx)
	if err := e.exp.Export(ctx, e.made.records); err != nil {
		return fmt.Errorf("span log: %w", answer.Failure(err, rejected(answer, len(batch))))
	}
	return nil
}

// rejected returns how many of n spans a receiver that took the request refused
// at least one record of.
func rejected(a *otlphttp.Answer, n int) int {
	var m collogs.ExportLogsServiceResponse
	if a.Status/100 != 2 || proto.Unmarshal(a.Body, &m) != nil {
		return n
	}
	return int(min((m.GetPartialSuccess().GetRejectedLogRecords()+1)/2, int64(n)))
}

func (e *otlpExporter) Close() error {
	err := e.provider.Shutdown(context.Background())
	if e := e.exp.Shutdown(context.Background()); err == nil {
		err = e
	}
	e.client.CloseIdleConnections()
	return err
}

// collector keeps the records that the SDK makes. It implements
// sdklog.Processor.
type collector struct{ records []sdklog.Record }

func (c *collector) OnEmit(_ context.Context, r *sdklog.Record) error {
	c.records = append(c.records, r.Clone())
	return nil
}
func (c *collector) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }
func (c *collector) Shutdown(context.Context) error                         { return nil }
func (c *collector) ForceFlush(context.Context) error                       { return nil }

// emit makes the records of the span's begin and end. The ids are fields of
// theirs; what else a line of the file has are attributes, and on that of the
// end so are the tags.
func (e *otlpExporter) emit(now time.Time) {
	s := &e.span
	ctx := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: s.TraceID, SpanID: s.SpanID, TraceFlags: trace.FlagsSampled,
	}))
	same := []attribute.KeyValue{
		export.KeyServiceName.String(valid(short(s.service, maxName))),
		attribute.String("span.name", valid(short(s.Name, maxName))),
		attribute.String("span.kind", kind(s.Kind)),
	}
	if s.parent.IsValid() {
		same = append(same, attribute.String("parent_id", s.parent.String()))
	}
	var r otellog.Record
	r.SetObservedTimestamp(now)
	r.SetTimestamp(time.Unix(0, s.Start))
	r.SetSeverity(otellog.SeverityInfo)
	r.SetSeverityText("INFO")
	r.SetBody(attribute.StringValue(Begin))
	r.AddAttributes(same...)
	e.logger.Emit(ctx, r)

	r = otellog.Record{}
	r.SetObservedTimestamp(now)
	r.SetTimestamp(time.Unix(0, max(s.End, s.Start)))
	r.SetSeverity(otellog.SeverityInfo)
	r.SetSeverityText("INFO")
	if s.failure != "" {
		r.SetSeverity(otellog.SeverityError)
		r.SetSeverityText("ERROR")
	}
	r.SetBody(attribute.StringValue(End))
	for _, t := range s.tags {
		switch t.Value.Type() {
		case attribute.BOOL, attribute.INT64, attribute.FLOAT64:
			r.AddAttributes(attribute.KeyValue{Key: attribute.Key(valid(short(string(t.Key), maxName))), Value: t.Value})
		default:
			r.AddAttributes(attribute.String(valid(short(string(t.Key), maxName)), valid(short(t.Value.String(), maxValue))))
		}
	}
	r.AddAttributes(same...) // after the tags: of one key the last stays
	r.AddAttributes(attribute.Int64("duration_us", s.micros()))
	e.logger.Emit(ctx, r)
}
