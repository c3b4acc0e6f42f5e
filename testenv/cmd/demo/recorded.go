package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/probes/recording"
	"github.com/xenserver/dtagent/testenv/daemon"
	"github.com/xenserver/dtagent/testenv/recordings"
)

// dtagent runs a verb and returns what it printed.
func dtagent(ctx context.Context, binary string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("dtagent %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// lacking says what this machine lacks for the real thing, and how to get it, "" if
// nothing.
func lacking(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "check", "--json").Output()
	var failed *exec.ExitError
	if err == nil {
		return "", nil
	}
	if !errors.As(err, &failed) {
		return "", err
	}
	var report struct {
		Kernel []struct {
			Name, Why, Advice string
			OK, Needed        bool
		}
		Notes []string
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return "", fmt.Errorf("dtagent check: %w: %s", err, failed.Stderr)
	}
	var b strings.Builder
	said := map[string]bool{}
	for _, c := range report.Kernel {
		if c.Needed && !c.OK {
			said[c.Why] = true
			fmt.Fprintf(&b, "  %s: %s\n    do:  %s\n", c.Name, c.Why, c.Advice)
		}
	}
	for _, n := range report.Notes {
		if slices.ContainsFunc(slices.Collect(maps.Keys(said)), func(why string) bool { return strings.Contains(n, why) }) {
			continue
		}
		fmt.Fprintf(&b, "  note: %s\n", n)
	}
	return b.String(), nil
}

const ruler = "=================================================================================="

// play shows the checked-in recording of the demonstration, by the same way that
// events of a kernel go: correlation, export to files, trees.
func play(ctx context.Context, o options) error {
	b, err := recordings.FS.ReadFile(recordings.Demo)
	if err != nil {
		return err
	}
	r, err := recording.NewReader(bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Close()
	dir, err := os.MkdirTemp("", "dtagent-demo-") // it stays, for the spans
	if err != nil {
		return err
	}
	file, spans := filepath.Join(dir, recordings.Demo), filepath.Join(dir, "spans")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	h := r.Header()
	fmt.Printf("\n%s\nRECORDED: what follows was seen on %s, on %s with Linux %s.\nNothing was traced on this machine. make demo LIVE=1 insists on the real thing.\n%s\n",
		ruler, h.Started.Format(time.DateOnly), h.Note, h.Kernel, ruler)
	say("Playing it through correlation and export: dtagent replay %s --dir %s", recordings.Demo, spans)
	if _, err := dtagent(ctx, o.binary, "replay", file, "--dir", spans); err != nil {
		return err
	}
	if o.zipkin != "" {
		out, err := dtagent(ctx, o.binary, "replay", file, "--to", o.zipkin)
		if err != nil {
			return err
		}
		say("%s", strings.TrimSpace(out))
	}
	if err := show(ctx, o.binary, spans); err != nil {
		return err
	}
	if err := list(spans); err != nil {
		return err
	}
	say("RECORDED: these traces were not made on this machine")
	return nil
}

// recorder records the demonstration; the zero value does not.
type recorder struct {
	cmd      *exec.Cmd
	errs     bytes.Buffer
	raw, out string
}

func startRecorder(ctx context.Context, o options, dir string, agent *daemon.Daemon) (*recorder, error) {
	r := &recorder{raw: filepath.Join(dir, "run", "demo.dtrec"), out: o.record}
	if o.record == "" {
		return r, nil
	}
	r.cmd = exec.Command(o.binary, "record", r.raw, "--control", agent.Control(), "--note", "a simulated dom0")
	r.cmd.Stderr = &r.errs
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		if info, err := os.Stat(r.raw); err == nil && info.Size() > 0 {
			return r, nil
		}
		select {
		case <-ctx.Done():
			r.kill()
			return nil, fmt.Errorf("the recording does not begin: %s", &r.errs)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// end ends the recording, and puts it where it is wanted.
func (r *recorder) end() error {
	if r.cmd == nil {
		return nil
	}
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("dtagent record: %w: %s", err, &r.errs)
	}
	r.cmd = nil
	return recordings.Keep(r.raw, r.out)
}

func (r *recorder) kill() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}
