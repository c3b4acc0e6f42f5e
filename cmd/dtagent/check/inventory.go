package check

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Inventory is the file in which the toolstack keeps what the host is.
const Inventory = "/etc/xensource-inventory"

// ReadInventory reads the file at path: lines KEY='value'.
func ReadInventory(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]string{}
	sc := bufio.NewScanner(io.LimitReader(f, maxRead))
	for sc.Scan() {
		if key, value, ok := strings.Cut(sc.Text(), "="); ok {
			out[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `'"`)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// product says what host this is; uuid is what is given for it, "" if nothing is.
func (h host) product(uuid string) (Item, string) {
	const name = "host"
	inv, err := ReadInventory(h.path(Inventory))
	var words []string
	for _, w := range []string{inv["PRODUCT_BRAND"] + " " + inv["PRODUCT_VERSION"], inv["PLATFORM_NAME"] + " " + inv["PLATFORM_VERSION"], inv["BUILD_NUMBER"]} {
		if w = strings.TrimSpace(w); w != "" {
			words = append(words, w)
		}
	}
	uuid = cmp.Or(uuid, inv["INSTALLATION_UUID"])
	if uuid != "" {
		return works(name, strings.Join(append(words, "uuid "+uuid), ", ")), uuid
	}
	if err == nil {
		err = errors.New("it has no INSTALLATION_UUID")
	}
	return wider(name, strings.Join(words, ", "), "its uuid is not known ("+Inventory+": "+reason(err)+"): spans carry none, and Observers for certain hosts do nothing",
		"give the agent --host-uuid, unless this is to be a host without XAPI"), ""
}

// reason is what is wrong with a file, without its name.
func reason(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return plain(err)
}
