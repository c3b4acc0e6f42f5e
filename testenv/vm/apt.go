package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// freshFor is how long the lists of packages are good. Suites get new kernels
// every few weeks.
const freshFor = 24 * time.Hour

// keyring is what signs the packages.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is apt-get with a state of its own: it knows nothing of what is installed
// on the machine, and changes nothing there. It sees one suite, and the one below
// that backports are for: a suite that cannot be had is in no other's way, and
// none's packages satisfy what another's need.
type apt struct {
	dir   string
	suite string
}

// newApt makes the state of a suite below dir, with the mirror that the machine
// itself uses or $DEBIAN_MIRROR.
func newApt(dir, suite string) (*apt, error) {
	if !suiteName.MatchString(suite) {
		return nil, fmt.Errorf("%q is no name of a suite", suite)
	}
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
	a := &apt{dir: filepath.Join(dir, suite), suite: suite}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(a.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, s := range sourcesOf(suite) {
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
APT::Default-Release %[2]q;
Acquire::Languages "none";
Acquire::Retries "3";
`, a.dir, suite)
	for name, content := range map[string]string{"apt.conf": conf, "status": "", "sources.list": sources.String()} {
		if old, err := os.ReadFile(a.path(name)); err == nil && string(old) == content {
			continue // apt's own cache stays good
		}
		os.Remove(a.path("updated"))
		if err := os.WriteFile(a.path(name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// suiteName is what a suite may be called: its name becomes a directory's.
var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// sourcesOf returns a suite with the one that it adds packages to.
func sourcesOf(suite string) []string {
	if base, ok := strings.CutSuffix(suite, "-backports"); ok {
		return []string{base, suite}
	}
	return []string{suite}
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

// withDependencies downloads packages with all that they need, and returns the
// files.
func (a *apt) withDependencies(ctx context.Context, packages ...string) ([]string, error) {
	archives := a.path("archives")
	if err := os.RemoveAll(archives); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"install", "-qq", "-y", "--download-only"}, packages...)...); err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(archives, "*.deb"))
}

// download downloads packages without what they need, into dir, and returns the
// files.
func (a *apt) download(ctx context.Context, dir string, packages ...string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-qq"}, packages...)...)
	cmd.Dir = dir
	if _, err := a.output(cmd); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(files) != len(packages) {
		err = fmt.Errorf("apt-get download %s: %d files", strings.Join(packages, " "), len(files))
	}
	return files, err
}

// unpack unpacks the files of packages into dir and removes them.
func unpack(ctx context.Context, dir string, files []string) error {
	for _, f := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", f, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w: %s", filepath.Base(f), err, bytes.TrimSpace(out))
		}
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// dependency is a package that another one needs; of alternatives the first.
type dependency struct{ name, version string } // version: "" if it is not exact

// dependencies returns what a package of the suite needs.
func (a *apt) dependencies(ctx context.Context, pkg string) ([]dependency, error) {
	out, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", pkg)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if depends, ok := strings.CutPrefix(line, "Depends: "); ok {
			return parseDepends(depends), nil
		}
	}
	return nil, nil
}

var dependsOn = regexp.MustCompile(`^\s*([^\s(|:]+)(?::\S+)?\s*(?:\(= ([^)]+)\))?`)

func parseDepends(depends string) (all []dependency) {
	for one := range strings.SplitSeq(depends, ",") {
		if m := dependsOn.FindStringSubmatch(one); m != nil {
			all = append(all, dependency{m[1], m[2]})
		}
	}
	return all
}

// kernelOf returns the packages that the suite's newest kernel of a flavour is
// made of, with their versions. Until Linux 7 one package has all of it; since
// then linux-image-RELEASE only needs others of its release.
func (a *apt) kernelOf(ctx context.Context, flavour string) (packages []string, err error) {
	meta := "linux-image-" + flavour
	depends, err := a.dependencies(ctx, meta+"/"+a.suite)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(depends, func(d dependency) bool { return strings.HasPrefix(d.name, "linux-image-") })
	if i < 0 {
		return nil, fmt.Errorf("its %s depends on no package linux-image-*", meta)
	}
	image := depends[i]
	release := strings.TrimPrefix(image.name, "linux-image-")
	todo := []dependency{image}
	for len(todo) > 0 {
		d := todo[0]
		todo = todo[1:]
		name := d.name
		if d.version != "" {
			name += "=" + d.version
		}
		if slices.Contains(packages, name) {
			continue
		}
		packages = append(packages, name)
		needs, err := a.dependencies(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, n := range needs {
			if strings.HasPrefix(n.name, "linux-") && strings.HasSuffix(n.name, "-"+release) {
				todo = append(todo, n)
			}
		}
	}
	return packages, nil
}

// run runs a program of apt. Its cache of packages saves most of its time; images of
// containers switch it off in a file that goes before ours.
func (a *apt) run(ctx context.Context, name string, args ...string) (string, error) {
	args = append([]string{"-o", "Dir::Cache::pkgcache=pkgcache.bin", "-o", "Dir::Cache::srcpkgcache=srcpkgcache.bin"}, args...)
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
