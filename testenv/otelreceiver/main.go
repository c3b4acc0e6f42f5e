// Command otelreceiver is the zipkin receiver and the OTLP receiver (HTTP) of
// the OpenTelemetry Collector with nothing behind them but a memory: what they
// decoded can be read back. Tests use it to have what dtagent sends read by a
// program that is not dtagent's.
//
// It prints one line, the addresses of the zipkin receiver, the OTLP receiver
// and the read-back, and ends when its standard input does.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/zipkinreceiver"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/config/configoptional"
	"go.opentelemetry.io/collector/config/configtls"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

func main() {
	cert := flag.String("cert", "", "PEM `file` of the certificate that the OTLP receiver shows; it then takes only https")
	key := flag.String("key", "", "PEM `file` of the certificate's key")
	flag.Parse()
	if err := run(*cert, *key); err != nil {
		log.Fatalf("otelreceiver: %v", err)
	}
}

func run(cert, key string) error {
	m := newMemory()
	zipkin, err := startZipkin(m)
	if err != nil {
		return fmt.Errorf("zipkin receiver: %w", err)
	}
	defer zipkin.stop()
	otlp, err := startOTLP(m, cert, key)
	if err != nil {
		return fmt.Errorf("OTLP receiver: %w", err)
	}
	defer otlp.stop()
	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: m.handler()}
	defer server.Close()
	go func() { _ = server.Serve(back) }()

	fmt.Println(zipkin.endpoint, otlp.endpoint, back.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// started is a receiver that runs.
type started struct {
	endpoint string
	parts    []component.Component
}

func (s *started) start(c component.Component, err error) error {
	if err != nil {
		return err
	}
	s.parts = append(s.parts, c)
	return c.Start(context.Background(), componenttest.NewNopHost())
}

func (s *started) stop() {
	for _, c := range s.parts {
		if err := c.Shutdown(context.Background()); err != nil {
			log.Printf("shutdown: %v", err)
		}
	}
}

func startZipkin(m *memory) (*started, error) {
	s := &started{}
	var err error
	if s.endpoint, err = freePort(); err != nil {
		return nil, err
	}
	f := zipkinreceiver.NewFactory()
	cfg := f.CreateDefaultConfig().(*zipkinreceiver.Config)
	cfg.ServerConfig.NetAddr.Endpoint = s.endpoint
	cfg.ServerConfig.IncludeMetadata = true
	return s, s.start(f.CreateTraces(context.Background(), receivertest.NewNopSettings(f.Type()), cfg, m.tracesConsumer()))
}

func startOTLP(m *memory, cert, key string) (*started, error) {
	s := &started{}
	var err error
	if s.endpoint, err = freePort(); err != nil {
		return nil, err
	}
	f := otlpreceiver.NewFactory()
	cfg := f.CreateDefaultConfig().(*otlpreceiver.Config)
	server := &cfg.Protocols.HTTP.GetOrInsertDefault().ServerConfig
	server.NetAddr.Endpoint = s.endpoint
	server.IncludeMetadata = true
	if cert != "" {
		server.TLS = configoptional.Some(configtls.ServerConfig{Config: configtls.Config{CertFile: cert, KeyFile: key}})
	}
	ctx, set := context.Background(), receivertest.NewNopSettings(f.Type())
	// All three are one: every consumer must be known when the first starts.
	traces, err := f.CreateTraces(ctx, set, cfg, m.tracesConsumer())
	if err != nil {
		return nil, err
	}
	if _, err := f.CreateMetrics(ctx, set, cfg, m.metricsConsumer()); err != nil {
		return nil, err
	}
	if _, err := f.CreateLogs(ctx, set, cfg, m.logsConsumer()); err != nil {
		return nil, err
	}
	return s, s.start(traces, nil)
}

// freePort returns an address to listen on: receivers do not tell a port that
// the kernel chose for them.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
