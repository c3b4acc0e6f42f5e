package processor

import (
	"context"

	"github.com/xenserver/dtagent/correlate"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// sampler returns OpenTelemetry's own sampler, so that every host, and every
// program that uses it with the same ratio, takes the same traces; nil takes all.
// (SDKs of most languages look at the same 8 bytes of the trace id; that of
// JavaScript does not.)
//
// Nothing asks for the sampled flag of the caller (parentbased): the toolstack
// records requests whose flags are 00 like any other, and so does dtagent.
func (c *Config) sampler() sdktrace.Sampler {
	switch c.Sampler {
	case AlwaysOff:
		return sdktrace.NeverSample()
	case TraceIDRatio:
		return sdktrace.TraceIDRatioBased(c.Ratio)
	}
	return nil
}

func (p *Pipeline) sampled(sp *correlate.Span) bool {
	if p.head == nil {
		return true
	}
	r := p.head.ShouldSample(sdktrace.SamplingParameters{ParentContext: context.Background(), TraceID: sp.TraceID})
	return r.Decision == sdktrace.RecordAndSample
}
