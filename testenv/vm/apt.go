package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// suites are those that packages come from. QEMU is that of the backports: the
// 7.2 of bookworm emulates Linux 6.12 with errors.
var suites = []string{"bullseye", "bookworm", "bookworm-backports"}

const toolSuite = "bookworm-backports"

// freshFor is how long the lists of packages are good. Suites get new kernels
// every few weeks.
const freshFor = 24 * time.Hour

// keyring is what signs the packages.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is apt-get with a state of its own: it knows nothing of what is installed
// on the machine, and changes nothing there.
type apt struct {
	dir string
}

// newApt makes the state in dir, with the mirror that the machine itself uses
// or $DEBIAN_MIRROR.
func newApt(dir string) (*apt, error) {
	for _, program := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("needs %s, of Debian or one of its children", program)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("needs the package debian-archive-keyring: %w", err)
	}
	mirror, err := mirror()
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&sources, "deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, mirror, s)
	}
	conf := fmt.Sprintf(`Dir::State %[1]q;
Dir::State::Lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache %[1]q;
Dir::Cache::archives "%[1]s/archives";
Dir::Etc::SourceList "%[1]s/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Default-Release "bookworm";
Acquire::Languages "none";
Acquire::Retries "3";
`, dir)
	a := &apt{dir}
	for name, content := range map[string]string{"apt.conf": conf, "status": ""} {
		if err := os.WriteFile(a.path(name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	if old, err := os.ReadFile(a.path("sources.list")); err != nil || string(old) != sources.String() {
		os.Remove(a.path("updated"))
		if err := os.WriteFile(a.path("sources.list"), []byte(sources.String()), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// mirror returns where the machine itself gets Debian's packages.
func mirror() (string, error) {
	if m := os.Getenv("DEBIAN_MIRROR"); m != "" {
		return m, nil
	}
	out, err := exec.Command("apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE)").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		uri, suite, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") && !strings.Contains(suite, "security") {
			return uri, nil
		}
	}
	return "", errors.New("apt of this machine has no mirror of Debian: set DEBIAN_MIRROR to the URL of one")
}

func (a *apt) path(name string) string { return filepath.Join(a.dir, name) }

// update gets the lists of packages unless they are fresh.
func (a *apt) update(ctx context.Context) error {
	if st, err := os.Stat(a.path("updated")); err == nil && time.Since(st.ModTime()) < freshFor {
		return nil
	}
	if _, err := a.run(ctx, "apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any"); err != nil {
		return err
	}
	return os.WriteFile(a.path("updated"), nil, 0o644)
}

// withDependencies downloads packages of a suite with all that they need, and
// returns the files.
func (a *apt) withDependencies(ctx context.Context, suite string, packages ...string) ([]string, error) {
	archives := a.path("archives")
	if err := os.RemoveAll(archives); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := append([]string{"install", "-qq", "-y", "--download-only", "-t", suite}, packages...)
	if _, err := a.run(ctx, "apt-get", args...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(archives, "*.deb"))
}

// download downloads one package, into dir, and returns the file.
func (a *apt) download(ctx context.Context, dir, pkg string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-qq", pkg)
	cmd.Dir = dir
	if _, err := a.output(cmd); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("apt-get download %s: %d files", pkg, len(files))
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}

// kernelOf returns the newest kernel package of a suite.
func (a *apt) kernelOf(ctx context.Context, suite string) (string, error) {
	out, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", "linux-image-cloud-amd64/"+suite)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if depends, ok := strings.CutPrefix(line, "Depends: "); ok {
			name, rest, _ := strings.Cut(strings.TrimSpace(depends), " ")
			version := strings.Trim(rest, "(=) ")
			return name + "=" + version, nil
		}
	}
	return "", fmt.Errorf("suite %s: its linux-image-cloud-amd64 depends on no kernel", suite)
}

func (a *apt) run(ctx context.Context, name string, args ...string) (string, error) {
	return a.output(exec.CommandContext(ctx, name, args...))
}

func (a *apt) output(cmd *exec.Cmd) (string, error) {
	cmd.Env = append(os.Environ(), "APT_CONFIG="+a.path("apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return string(out), nil
}
