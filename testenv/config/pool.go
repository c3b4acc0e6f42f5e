package config

// Pool tells a dom0 that it is one host of a pool. Package testenv makes it.
type Pool struct {
	UUID   string `json:"uuid"`
	Ref    string `json:"ref"`
	Secret string `json:"secret"` // that hosts know each other by
	Key    string `json:"key"`    // of this host's certificate
	Hosts  []Host `json:"hosts"`  // the coordinator is the first
	Self   int    `json:"self"`   // which of Hosts this one is
	VMs    []VM   `json:"vms"`
}

// Host is one host of a pool.
type Host struct {
	Ref     string `json:"ref"`
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	Address string `json:"address"`

	Certificate string `json:"certificate"` // in the pool
}

// Where a host keeps its certificate for the pool, with its key, and those of all
// hosts (certificates_sync.ml, stunnel.ml).
const (
	PoolCertificate  = "/etc/xensource/xapi-pool-tls.pem"
	PoolCertificates = "/etc/stunnel/xapi-pool-ca-bundle.pem"
)

// Coordinator tells whether this host has the pool's database; a dom0 that is in no pool
// has its own.
func (p *Pool) Coordinator() bool { return p == nil || p.Self == 0 }

// Ports of a pool's hosts, each of which has a network of its own.
const (
	HTTPPort  = 80
	HTTPSPort = 443
)
