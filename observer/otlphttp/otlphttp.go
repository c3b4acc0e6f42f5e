// Package otlphttp is what the OpenTelemetry exporters for metrics and logs
// need to reach the OTLP receivers that Observers name as endpoints.
package otlphttp

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// prefix marks an endpoint of an Observer as OTLP.
const prefix = "otlp+"

// The signals of OTLP, as the last element of their default paths.
const (
	Traces  = "traces"
	Metrics = "metrics"
	Logs    = "logs"
)

// IsEndpoint tells whether the endpoint of an Observer is an OTLP receiver:
// otlp+http://… or otlp+https://….
func IsEndpoint(endpoint string) bool {
	return strings.HasPrefix(endpoint, prefix+"http://") || strings.HasPrefix(endpoint, prefix+"https://")
}

// URL returns where the receiver takes that signal. The endpoint is that of
// traces: its path ends in /v1/traces, which becomes /v1/<signal>; to any other
// path /v1/<signal> is added, as the OpenTelemetry exporters do with a base URL.
func URL(endpoint, signal string) (*url.URL, error) {
	if !IsEndpoint(endpoint) {
		return nil, errors.New("not an OTLP endpoint: write otlp+http://HOST:PORT/v1/traces or otlp+https://…")
	}
	u, err := url.Parse(strings.TrimPrefix(endpoint, prefix))
	if err != nil {
		var e *url.Error // its text holds the URL, which may hold a password
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("OTLP endpoint: %w", err)
	}
	if u.Hostname() == "" {
		return nil, errors.New("OTLP endpoint: no host")
	}
	u.Fragment, u.RawPath = "", ""
	path := strings.TrimSuffix(u.Path, "/")
	path = strings.TrimSuffix(path, "/v1/"+Traces)
	u.Path = path + "/v1/" + signal
	return u, nil
}
