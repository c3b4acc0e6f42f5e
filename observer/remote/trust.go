package remote

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"sync"
)

// PoolBundles returns the bundles of CA certificates that the toolstack keeps:
// that of the pool's hosts and that of the appliances that its users trust
// (pool-bundle-path and stunnel-bundle-path of xapi).
func PoolBundles() []string {
	return []string{"/etc/stunnel/xapi-pool-ca-bundle.pem", "/etc/stunnel/xapi-stunnel-ca-bundle.pem"}
}

// Trust is what the certificates of https receivers are checked against. Its
// files are read again when they have changed. It may be shared, and used by
// several goroutines at once.
type Trust struct {
	bundles []string

	mu     sync.Mutex
	file   string
	parsed bool
	texts  [][]byte // of the files when they were parsed
	pool   *x509.CertPool
}

// NewTrust returns the Trust in the CA certificates of file alone or, when file
// is "", in those of the system and of the bundles, as far as these exist.
// The files are first read when a receiver is connected to; a file that cannot
// be read then fails the connection.
func NewTrust(file string, bundles ...string) *Trust {
	return &Trust{file: file, bundles: bundles}
}

// Use changes the file of NewTrust, from the next connection on. It tells
// whether it was another one.
func (t *Trust) Use(file string) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == file {
		return false
	}
	t.file, t.parsed = file, false
	return true
}

// Roots returns the certificates as they are now.
func (t *Trust) Roots() (*x509.CertPool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	texts, err := t.read()
	if err != nil {
		return nil, err
	}
	if t.parsed && equal(texts, t.texts) {
		return t.pool, nil
	}
	pool := x509.NewCertPool()
	if t.file == "" {
		// Without any the bundles can still do.
		if p, err := x509.SystemCertPool(); err == nil {
			pool = p
		}
	}
	for _, text := range texts {
		if !pool.AppendCertsFromPEM(text) && t.file != "" {
			return nil, fmt.Errorf("CA file %s: no certificate in it", t.file)
		}
	}
	t.texts, t.pool, t.parsed = texts, pool, true
	return pool, nil
}

// maxBundle bounds what is read of a file.
const maxBundle = 8 << 20

func (t *Trust) read() (texts [][]byte, err error) {
	if t.file != "" {
		text, err := readBounded(t.file, maxBundle)
		if err != nil {
			return nil, fmt.Errorf("CA file: %w", err)
		}
		return [][]byte{text}, nil
	}
	for _, b := range t.bundles {
		if text, err := readBounded(b, maxBundle); err == nil {
			texts = append(texts, text)
		} else if !os.IsNotExist(err) {
			return nil, fmt.Errorf("CA bundle: %w", err)
		}
	}
	return texts, nil
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return b, err
}
