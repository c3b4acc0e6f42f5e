// Command zipkinreceiver is the zipkin receiver of the OpenTelemetry Collector
// with nothing behind it but a memory: what it decoded can be read back. Tests
// use it to have spans read by a program that is not dtagent's.
//
// It prints one line, the address of the receiver and that of the read-back,
// and ends when its standard input does.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/zipkinreceiver"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

func main() {
	if err := run(); err != nil {
		log.Fatalf("zipkinreceiver: %v", err)
	}
}

// memory keeps every batch that the receiver decoded.
type memory struct {
	mu  sync.Mutex
	all ptrace.Traces
}

func (m *memory) consume(_ context.Context, td ptrace.Traces) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	td.ResourceSpans().MoveAndAppendTo(m.all.ResourceSpans())
	return nil
}

// ServeHTTP answers with all that was decoded, as OTLP JSON.
func (m *memory) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := (&ptrace.JSONMarshaler{}).MarshalTraces(m.all)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(b)
}

func run() error {
	m := &memory{all: ptrace.NewTraces()}
	next, err := consumer.NewTraces(m.consume)
	if err != nil {
		return err
	}
	// The receiver does not tell a port that the kernel chose.
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	endpoint := probe.Addr().String()
	probe.Close()

	factory := zipkinreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig().(*zipkinreceiver.Config)
	cfg.ServerConfig.NetAddr.Endpoint = endpoint
	r, err := factory.CreateTraces(context.Background(), receivertest.NewNopSettings(factory.Type()), cfg, next)
	if err != nil {
		return err
	}
	if err := r.Start(context.Background(), componenttest.NewNopHost()); err != nil {
		return err
	}
	defer func() { _ = r.Shutdown(context.Background()) }()
	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: m}
	defer server.Close()
	go func() { _ = server.Serve(back) }()

	fmt.Println(endpoint, back.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
