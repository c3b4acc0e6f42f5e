package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/otlphttp"
	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/observer/zipkin"
)

// Endpoint is where Observers in force send spans.
type Endpoint struct {
	Item
	Endpoint  string   `json:"endpoint"`  // without password
	Observers []string `json:"observers"` // their uuids
}

const (
	endpointTimeout = 5 * time.Second // for all: they are asked at once
	askedAtOnce     = 16
	maxAsked        = 256 // endpoints of all Observers
)

// asked is an endpoint that is to be asked, and what with.
type asked struct {
	endpoint, caFile string
	observers        []string
}

// endpoints looks at all that Observers in force name.
func (c *checker) endpoints(ctx context.Context, obs []Observer) []Endpoint {
	var all []*asked
	logs := []string{}
	for _, o := range obs {
		if !o.inForce() {
			continue
		}
		st, _ := o.is.Steering()
		if st.Logs {
			logs = append(logs, o.UUID)
		}
		for _, e := range o.is.Receivers() {
			i := slices.IndexFunc(all, func(a *asked) bool { return a.endpoint == e && a.caFile == st.CAFile })
			if i < 0 {
				i = len(all)
				all = append(all, &asked{endpoint: e, caFile: st.CAFile})
			}
			all[i].observers = append(all[i].observers, o.UUID)
		}
	}
	out := make([]Endpoint, len(all))
	ctx, cancel := context.WithTimeout(ctx, endpointTimeout)
	defer cancel()
	var wg sync.WaitGroup
	free := make(chan struct{}, askedAtOnce)
	for i, a := range all {
		out[i] = Endpoint{Endpoint: observer.Show(a.endpoint), Observers: a.observers}
		e := &out[i]
		switch {
		case a.endpoint == observer.Bugtool:
			e.Item = directory("bugtool", c.o.BugtoolDir, c.logRoom)
		case c.o.Offline:
			e.Item = unknown(e.Endpoint, "not looked at", "leave --offline out")
		case i >= maxAsked:
			e.Item = unknown(e.Endpoint, fmt.Sprintf("not looked at: only the first %d are", maxAsked), "name fewer endpoints")
		default:
			wg.Go(func() {
				free <- struct{}{}
				defer func() { <-free }()
				e.Item = ask(ctx, a, c.o.CAFile, c.o.Version)
			})
		}
	}
	wg.Wait()
	if len(logs) > 0 {
		out = append(out, Endpoint{Item: directory("logs", parent(c.o.SpanLog), c.logRoom), Endpoint: "logs", Observers: logs})
	}
	return out
}

// ask sends a request without spans, in the way and with the trust of the exporter.
// Receivers of both forms take one: an empty list of zipkin's, an empty
// ExportTraceServiceRequest of OTLP's, which is no bytes at all.
func ask(ctx context.Context, a *asked, caFile, version string) Item {
	name := observer.Show(a.endpoint)
	bundles := remote.PoolBundles()
	if caFile != "" {
		bundles = append(bundles, caFile)
	}
	var enc remote.Encoder = new(zipkin.Encoder)
	body, sent := []byte("[]"), "took an empty list of spans"
	if otlphttp.IsEndpoint(a.endpoint) {
		enc, body, sent = new(otlp.Encoder), nil, "took a request without spans"
	}
	client, err := remote.NewClient(a.endpoint, enc, remote.ClientOptions{Trust: remote.NewTrust(a.caFile, bundles...), Timeout: endpointTimeout, UserAgent: "dtagent/" + version})
	if err != nil {
		return fails(name, plain(err), "see docs/observers.md for the forms of endpoints")
	}
	defer client.Close()
	return judge(name, sent, client.Post(ctx, body, 0))
}

// judge says what an answer to a request without spans means.
func judge(name, sent string, err error) Item {
	const waits = "; until then spans wait in a queue"
	var status *remote.StatusError
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	var invalid x509.CertificateInvalidError
	var net interface{ Timeout() bool }
	switch {
	case err == nil:
		return works(name, sent)
	case errors.As(err, &status):
		why := "it " + status.Error()
		switch status.Code {
		case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusLengthRequired:
			return unknown(name, why+", to a request without spans: whether it takes spans is not known", "see whether spans arrive; dtagent status tells what was refused")
		case http.StatusUnauthorized, http.StatusForbidden:
			return fails(name, why, "give a user and password that may write, as in http://USER:PASSWORD@HOST/…; spans are dropped until then")
		case http.StatusNotFound, http.StatusMethodNotAllowed:
			return fails(name, why, "see the path: zipkin receivers take spans at /api/v2/spans, and otlp+http:// adds /v1/traces if there is none; spans are dropped until then")
		}
		return fails(name, why, "see what is wrong with the receiver")
	case errors.As(err, &unknownCA), errors.As(err, &wrongHost), errors.As(err, &invalid):
		return fails(name, plain(err), "give the CA of the receiver with --ca-file or the attribute dtagent.ca_file, or mend its certificate"+waits)
	case errors.As(err, &net) && net.Timeout(), errors.Is(err, context.DeadlineExceeded), strings.HasSuffix(err.Error(), " is over"):
		return fails(name, fmt.Sprintf("no answer within %s", endpointTimeout), "see whether the receiver runs, and firewalls between dom0 and it"+waits)
	}
	return fails(name, plain(err), "see whether the receiver runs, and firewalls and the route from dom0 to it"+waits)
}
