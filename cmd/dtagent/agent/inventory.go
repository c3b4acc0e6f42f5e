package agent

import (
	"errors"
	"fmt"
	"os"

	"github.com/xenserver/dtagent/cmd/dtagent/check"
	"github.com/xenserver/dtagent/observer"
)

// Inventory is the file in which the toolstack keeps what the host is.
const Inventory = check.Inventory

// ErrNoHost says that the inventory does not name this host's uuid.
var ErrNoHost = errors.New("no INSTALLATION_UUID")

// ReadHost returns this host as the inventory at path names it. The name is
// the kernel's host name: XAPI's own name_label is in its database only.
func ReadHost(path string) (observer.Host, error) {
	inventory, err := check.ReadInventory(path)
	if err != nil {
		return observer.Host{}, err
	}
	h := observer.Host{UUID: inventory["INSTALLATION_UUID"]}
	if h.UUID == "" {
		return h, fmt.Errorf("%s: %w", path, ErrNoHost)
	}
	h.Name, err = os.Hostname()
	return h, err
}
