package packaging

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// nfpm is the program that writes packages, as `go run` knows it.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

//go:embed nfpm.yaml
var contents string

// Kind is a kind of package.
type Kind struct {
	Format string // "rpm", "deb"
	Dist   string // part of an RPM's release: "el7", "el10"
}

// Kinds are the packages that there are.
var Kinds = []Kind{
	{Format: "rpm", Dist: "el7"},
	{Format: "rpm", Dist: "el10"},
	{Format: "deb"},
}

// Options of Build.
type Options struct {
	Source  string    // the repository
	Binary  string    // the agent
	Version string    // as Version makes it
	Time    time.Time // of all files
	Out     string    // directory of the packages
}

// File is the name of the package that Build writes.
func (k Kind) File(version string) string {
	if k.Format == "deb" {
		return fmt.Sprintf("dtagent_%s-1_amd64.deb", version)
	}
	return fmt.Sprintf("dtagent-%s-%s.x86_64.rpm", version, k.release())
}

func (k Kind) release() string {
	if k.Dist != "" {
		return "1." + k.Dist
	}
	return "1"
}

func (k Kind) licenses() string {
	if k.Format == "deb" {
		return "/usr/share/doc/dtagent"
	}
	return "/usr/share/licenses/dtagent"
}

// Build writes one package and returns its path.
func Build(ctx context.Context, k Kind, o Options) (string, error) {
	dir, err := os.MkdirTemp("", "dtagent-package-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	notices := filepath.Join(dir, "third-party.txt")
	text, err := Notices(ctx, o.Source)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(notices, text, 0o644); err != nil {
		return "", err
	}
	docs, err := filepath.Glob(filepath.Join(o.Source, "docs", "*.md"))
	if err != nil {
		return "", err
	}
	for i, d := range docs {
		if docs[i], err = filepath.Rel(o.Source, d); err != nil {
			return "", err
		}
	}
	binary, err := filepath.Abs(o.Binary)
	if err != nil {
		return "", err
	}
	var config bytes.Buffer
	t, err := template.New("nfpm.yaml").Option("missingkey=error").Parse(contents)
	if err != nil {
		return "", err
	}
	if err := t.Execute(&config, map[string]any{
		"Format": k.Format, "Dist": k.Dist, "Release": k.release(), "Licenses": k.licenses(),
		"Version": o.Version, "Time": o.Time.UTC().Format(time.RFC3339), "Binary": binary, "Docs": docs, "Notices": notices,
	}); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "nfpm.yaml")
	if err := os.WriteFile(file, config.Bytes(), 0o644); err != nil {
		return "", err
	}
	out, err := filepath.Abs(filepath.Join(o.Out, k.File(o.Version)))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "run", nfpm, "package", "--config", file, "--packager", k.Format, "--target", out)
	cmd.Dir = o.Source
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(o.Time.Unix(), 10))
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("nfpm: %w: %s", err, bytes.TrimSpace(said))
	}
	return out, nil
}

// SourceTime is SOURCE_DATE_EPOCH, or else the time of the commit that is checked out
// in dir.
func SourceTime(ctx context.Context, dir string) (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		cmd := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct")
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("the time of the sources is not known: this is no git checkout (%w); give SOURCE_DATE_EPOCH, in seconds since 1970", err)
		}
		epoch = strings.TrimSpace(string(out))
	}
	s, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || s < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is no number of seconds since 1970", epoch)
	}
	return time.Unix(s, 0), nil
}
