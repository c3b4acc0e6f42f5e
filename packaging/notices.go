package packaging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|unlicense)([.-].*)?$`)

// Notices returns the licences of the Go modules that the agent is linked with, and
// of Go, as they ask for where the program is passed on.
func Notices(ctx context.Context, source string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Module", "./cmd/dtagent")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	type module struct {
		Path, Version, Dir string
		Main               bool
	}
	modules := map[string]module{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *module }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Module != nil && !p.Module.Main {
			modules[p.Module.Path] = *p.Module
		}
	}
	cmd = exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION")
	cmd.Dir = source
	if out, err = cmd.Output(); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	env := strings.Fields(string(out))
	if len(env) != 2 {
		return nil, fmt.Errorf("go env: %q", out)
	}
	modules["Go"] = module{Path: "Go", Version: env[1], Dir: env[0]}

	var b bytes.Buffer
	b.WriteString("dtagent is linked with these modules. Their licences follow.\n")
	var paths []string
	for p := range modules {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		fmt.Fprintf(&b, "  %s %s\n", p, modules[p].Version)
	}
	for _, p := range paths {
		entries, err := os.ReadDir(modules[p].Dir)
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range entries {
			if !e.Type().IsRegular() || !licenceName.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(modules[p].Dir, e.Name()))
			if err != nil {
				return nil, err
			}
			found = true
			fmt.Fprintf(&b, "\n\n== %s: %s\n\n%s", p, e.Name(), text)
		}
		if !found {
			return nil, fmt.Errorf("module %s has no licence file in its root: look at it, and teach Notices where its licence is", p)
		}
	}
	return b.Bytes(), nil
}
