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

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// Package is a Go package with tests to run in the guest.
type Package struct {
	Path string // from the module's root
	Run  string // regular expression of its tests
}

// Packages are those whose tests need a kernel. Their tests that end in Kernel
// do; the few packages below probes that read /proc and netlink run as a whole, and
// so does the stand-in of a tapdisk.
var Packages = []Package{
	{"bpf", "Kernel$"},
	{"probes", "Kernel$"},
	{"probes/target", "."},
	{"probes/clock", "."},
	{"probes/guestio", "Kernel$"},
	{"testenv/capture", "Kernel$"},
	{"testenv/fault", "Kernel$"},
	{"testenv/tapdisk", "."},
	{"testenv/e2e", "Kernel$"},
}

// Modules are those that the tests need. Debian builds everything else that they
// need into the kernel.
var Modules = []string{
	"unix_diag",
	"overlay", // the simulated dom0
	// What the devices of testenv/fault need.
	"loop", "fuse", "dm_mod", "dm_delay", "configfs", "null_blk", "nbd", "sd_mod", "scsi_debug", "iscsi_tcp",
	"target_core_mod", "iscsi_target_mod", "sch_netem", "nfsv3",
}

// timeLimit is that of one package's tests in the guest, four times of what
// the longest takes on two busy processors.
const timeLimit = 15 * time.Minute

// Suite is the programs that a guest runs, built.
type Suite struct {
	guest  string
	agent  string
	dom0   string
	Count  int // how often each package's tests are run, 0: once
	Binary []TestBinary
	Limit  time.Duration // of one package's tests
}

// TestBinary is the tests of a package.
type TestBinary struct {
	Package
	file  string
	Tests []string // those that the guest has to run
}

// BuildSuite builds everything below dir, static and without the race detector,
// which needs cgo. Of the packages whose path contains filter it takes the tests
// whose names match the package's expression and run.
func BuildSuite(ctx context.Context, dir, filter string, run *regexp.Regexp) (*Suite, error) {
	s, err := BuildPackages(ctx, dir, Packages, filter, run)
	if err != nil {
		return nil, err
	}
	s.dom0 = filepath.Join(dir, "dom0")
	return s, buildDom0(ctx, s.dom0)
}

// BuildPackages is BuildSuite for other packages.
func BuildPackages(ctx context.Context, dir string, packages []Package, filter string, run *regexp.Regexp) (*Suite, error) {
	s := &Suite{guest: filepath.Join(dir, "guest"), agent: filepath.Join(dir, "dtagent"), Limit: timeLimit}
	if err := Build(ctx, "build", "-o", s.guest, "./testenv/vm/cmd/guest"); err != nil {
		return nil, err
	}
	if err := Build(ctx, "build", "-o", s.agent, "./cmd/dtagent"); err != nil {
		return nil, err
	}
	for _, p := range packages {
		if !strings.Contains(p.Path, filter) {
			continue
		}
		b := TestBinary{Package: p, file: filepath.Join(dir, strings.ReplaceAll(p.Path, "/", "-")+".test")}
		if err := Build(ctx, "test", "-c", "-o", b.file, "./"+p.Path); err != nil {
			return nil, err
		}
		out, err := exec.CommandContext(ctx, b.file, "-test.list", p.Run).Output()
		if err != nil {
			return nil, fmt.Errorf("list the tests of %s: %w", p.Path, err)
		}
		for name := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(name, "Test") && run.MatchString(name) {
				b.Tests = append(b.Tests, name)
			}
		}
		if len(b.Tests) > 0 {
			s.Binary = append(s.Binary, b)
		}
	}
	if len(s.Binary) == 0 {
		return nil, fmt.Errorf("no package %q has a test %q to run in a guest", filter, run)
	}
	return s, nil
}

// buildDom0 builds the simulated dom0, a part of which is C, without libraries that
// the guest would have to have.
func buildDom0(ctx context.Context, file string) error {
	if _, err := exec.LookPath("gcc"); err != nil {
		return errors.New("the simulated dom0 needs a C compiler and a static C library: install gcc and libc6-dev")
	}
	return goCommand(ctx, "1", "build", "-tags=netgo,osusergo", "-ldflags=-s -w -linkmode=external -extldflags=-static", "-o", file, "./testenv/cmd/dom0")
}

// Build runs go with args for a static binary that any of the machines can run.
func Build(ctx context.Context, args ...string) error {
	return goCommand(ctx, "0", append([]string{args[0], "-ldflags=-s -w"}, args[1:]...)...)
}

func goCommand(ctx context.Context, cgo string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// checkRun is the name of the run of `dtagent check`.
const checkRun = "dtagent check"

// tests tells whether a run is that of a package's tests.
func (s *Suite) tests(run string) bool {
	return slices.ContainsFunc(s.Binary, func(b TestBinary) bool { return b.Path == run })
}

// Programs are the files that the suite's runs need, by their names in the guest.
func (s *Suite) Programs() map[string]string {
	programs := map[string]string{"/bin/dtagent": s.agent}
	if s.dom0 != "" {
		programs["/bin/dom0"] = s.dom0
	}
	for _, b := range s.Binary {
		programs["/tests/"+filepath.Base(b.file)] = b.file
	}
	return programs
}

// Loads returns the files of the modules in the guest.
func (k *Kernel) Loads() (files []string) {
	for _, m := range k.Modules {
		files = append(files, "/modules/"+filepath.Base(m))
	}
	return files
}

// Runs returns what is to be run in a guest: check, and the tests.
func (s *Suite) Runs() (runs []plan.Run) {
	runs = append(runs, plan.Run{Name: checkRun, Dir: "/", Argv: []string{"/bin/dtagent", "check"}})
	for range max(s.Count, 1) {
		for _, b := range s.Binary {
			runs = append(runs, plan.Run{
				Name: b.Path,
				Dir:  "/src/" + b.Path,
				Argv: []string{"/tests/" + filepath.Base(b.file), "-test.run", "^(" + strings.Join(b.Tests, "|") + ")$", "-test.v=test2json", "-test.timeout", s.Limit.String()},
			})
		}
	}
	return runs
}
