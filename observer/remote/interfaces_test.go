package remote_test

import (
	"github.com/xenserver/dtagent/observer/export"
	"github.com/xenserver/dtagent/observer/otlp"
	"github.com/xenserver/dtagent/observer/remote"
	"github.com/xenserver/dtagent/observer/zipkin"
)

var (
	_ remote.Encoder = (*zipkin.Encoder)(nil)
	_ remote.Encoder = (*otlp.Encoder)(nil)
	_ export.Holder  = (*remote.Exporter)(nil)
)
