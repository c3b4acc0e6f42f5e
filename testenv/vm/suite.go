package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/xenserver/dtagent/testenv/vm/plan"
)

// Package is a Go package with tests to run in the guest.
type Package struct {
	Path string // from the module's root
	Run  string // regular expression of its tests
}

// Packages are those whose tests need a kernel. Their tests that end in Kernel
// do; the few packages below probes that read /proc and netlink run as a whole.
var Packages = []Package{
	{"bpf", "Kernel$"},
	{"probes", "Kernel$"},
	{"probes/target", "."},
	{"probes/clock", "."},
	{"testenv/capture", "Kernel$"},
}

// Modules are those that the tests need. Debian builds everything else that they
// need into the kernel.
var Modules = []string{
	"unix_diag",
	// What the devices of testenv/fault need.
	"loop", "fuse", "dm_mod", "dm_delay", "configfs", "null_blk", "nbd", "sd_mod", "scsi_debug", "iscsi_tcp",
	"target_core_mod", "iscsi_target_mod", "sch_netem", "nfsv3",
}

// timeLimit is that of one package's tests in the guest, four times of what
// the longest takes on two busy processors.
const timeLimit = "400s"

// Suite is the programs that a guest runs, built.
type Suite struct {
	guest  string
	agent  string
	Binary []TestBinary
}

// TestBinary is the tests of a package.
type TestBinary struct {
	Package
	file  string
	Tests []string // those that the guest has to run
}

// BuildSuite builds everything below dir, static and without the race detector,
// which needs cgo. Only tests whose names match the package's expression and
// only packages whose path contains filter are taken.
func BuildSuite(ctx context.Context, dir, filter string) (*Suite, error) {
	s := &Suite{guest: filepath.Join(dir, "guest"), agent: filepath.Join(dir, "dtagent")}
	if err := goBuild(ctx, "build", "-o", s.guest, "./testenv/vm/cmd/guest"); err != nil {
		return nil, err
	}
	if err := goBuild(ctx, "build", "-o", s.agent, "./cmd/dtagent"); err != nil {
		return nil, err
	}
	for _, p := range Packages {
		if !strings.Contains(p.Path, filter) {
			continue
		}
		b := TestBinary{Package: p, file: filepath.Join(dir, strings.ReplaceAll(p.Path, "/", "-")+".test")}
		if err := goBuild(ctx, "test", "-c", "-o", b.file, "./"+p.Path); err != nil {
			return nil, err
		}
		out, err := exec.CommandContext(ctx, b.file, "-test.list", p.Run).Output()
		if err != nil {
			return nil, fmt.Errorf("list the tests of %s: %w", p.Path, err)
		}
		for name := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(name, "Test") {
				b.Tests = append(b.Tests, name)
			}
		}
		if len(b.Tests) == 0 {
			return nil, fmt.Errorf("package %s has no test %s", p.Path, p.Run)
		}
		s.Binary = append(s.Binary, b)
	}
	return s, nil
}

func goBuild(ctx context.Context, args ...string) error {
	args = append([]string{args[0], "-ldflags=-s -w"}, args[1:]...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// checkRun is the name of the run of `dtagent check`.
const checkRun = "dtagent check"

// plan returns what the guest does.
func (s *Suite) plan(k *Kernel) plan.Plan {
	var p plan.Plan
	for _, m := range k.Modules {
		p.Modules = append(p.Modules, "/modules/"+filepath.Base(m))
	}
	p.Runs = append(p.Runs, plan.Run{Name: checkRun, Dir: "/", Argv: []string{"/bin/dtagent", "check"}})
	for _, b := range s.Binary {
		p.Runs = append(p.Runs, plan.Run{
			Name: b.Path,
			Dir:  "/src/" + b.Path,
			Argv: []string{"/tests/" + filepath.Base(b.file), "-test.run", b.Run, "-test.v=test2json", "-test.timeout", timeLimit},
		})
	}
	return p
}
