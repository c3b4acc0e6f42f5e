package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/xenserver/dtagent/observer"
)

// Inventory is the file in which the toolstack keeps what the host is.
const Inventory = "/etc/xensource-inventory"

// ErrNoHost says that the inventory does not name this host's uuid.
var ErrNoHost = errors.New("no INSTALLATION_UUID")

// ReadHost returns this host as the inventory at path names it. The name is
// the kernel's host name: XAPI's own name_label is in its database only.
func ReadHost(path string) (observer.Host, error) {
	f, err := os.Open(path)
	if err != nil {
		return observer.Host{}, err
	}
	defer f.Close()
	h := observer.Host{}
	sc := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), "=")
		if ok && strings.TrimSpace(key) == "INSTALLATION_UUID" {
			h.UUID = strings.Trim(strings.TrimSpace(value), `'"`)
		}
	}
	if err := sc.Err(); err != nil {
		return h, fmt.Errorf("%s: %w", path, err)
	}
	if h.UUID == "" {
		return h, fmt.Errorf("%s: %w", path, ErrNoHost)
	}
	h.Name, err = os.Hostname()
	return h, err
}
