//go:build linux

package launch

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/xenserver/dtagent/testenv/config"
)

// certificates writes what the hosts of a pool know each other by where stunnel
// looks for it: this host's own, and those of all.
func certificates(p *config.Pool) error {
	if p == nil {
		return nil
	}
	var all strings.Builder
	for _, h := range p.Hosts {
		all.WriteString(h.Certificate)
	}
	for name, text := range map[string]string{
		config.PoolCertificate:  p.Key + p.Hosts[p.Self].Certificate,
		config.PoolCertificates: all.String(),
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o400); err != nil {
			return err
		}
	}
	return nil
}
