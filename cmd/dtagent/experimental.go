package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
)

// xapiConf and xapiConfDir are XAPI's configuration: the file first, then the
// files of the directory in the order of their names.
const (
	xapiConf    = "/etc/xapi.conf"
	xapiConfDir = "/etc/xapi.conf.d"
)

// xapiExperimental is what XAPI leaves out when its configuration is silent
// (observer-experimental-components in xapi_globs.ml of xen-api).
const xapiExperimental = "smapi"

// experimentalComponents reads the value of --experimental-components. Names in
// XAPI's configuration that do not exist are passed over, as XAPI does.
func experimentalComponents(value string) (event.Components, error) {
	strict := value != "xapi.conf"
	if !strict {
		var err error
		if value, err = readExperimental(xapiConf, xapiConfDir); err != nil {
			return 0, err
		}
	}
	var s event.Components
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		c, err := event.ParseComponent(name)
		if err != nil {
			if strict {
				return 0, fmt.Errorf("--experimental-components: %w", err)
			}
			continue
		}
		s |= event.Of(c)
	}
	return s, nil
}

// readExperimental returns XAPI's observer-experimental-components. The last
// value counts.
func readExperimental(conf, dir string) (string, error) {
	value := xapiExperimental
	files := []string{conf}
	more, err := filepath.Glob(filepath.Join(dir, "*")) // in the order of names
	if err != nil {
		return "", err
	}
	for _, name := range append(files, more...) {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if info, err := f.Stat(); err == nil && info.IsDir() {
			f.Close()
			continue
		}
		sc := bufio.NewScanner(io.LimitReader(f, 1<<20))
		for sc.Scan() {
			line, _, _ := strings.Cut(sc.Text(), "#")
			key, v, ok := strings.Cut(line, "=")
			if ok && strings.TrimSpace(key) == "observer-experimental-components" {
				value = strings.Trim(strings.TrimSpace(v), `"'`)
			}
		}
		err = errors.Join(sc.Err(), f.Close())
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	return value, nil
}
