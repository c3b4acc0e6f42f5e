// Command demo shows dtagent at work: it starts a simulated dom0 and the real
// agent with real eBPF, makes calls as a partner's script does, and prints the
// traces that came of them. Where eBPF is not to be had it says what is missing, and
// plays a recording of the same instead.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/daemon"
)

// The trace contexts that the two callers send. The first is that of the
// XenServer documentation's example.
const (
	shutdownTrace = "3100a3ead5c4210a99c27e3e5578158c"
	shutdownSpan  = "34991b6261208b64"
	startTrace    = "4bf92f3577b34da6a3ce929d0e0e4736"
	startSpan     = "00f067aa0ba902b7"
	tracestate    = "partner=backup-42"
)

// options are what the demonstration is told.
type options struct {
	binary string
	zipkin string
	live   bool
	record string
	log    io.Writer // of the agent; nil: not shown
}

func main() {
	var o options
	flag.StringVar(&o.binary, "dtagent", "bin/dtagent", "the agent's binary")
	flag.StringVar(&o.zipkin, "zipkin", "", "also send the spans to this zipkin endpoint, such as http://host:9411/api/v2/spans")
	flag.BoolVar(&o.live, "live", false, "fail where the real thing is not possible, and play no recording")
	flag.StringVar(&o.record, "record", "", "record the demonstration into this file, which is replaced; not with a recording")
	verbose := flag.Bool("v", false, "show the agent's log")
	flag.Parse()
	if *verbose {
		o.log = os.Stderr
	}
	o.live = o.live || o.record != ""
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	err := demonstrate(ctx, o)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demonstrate shows the real thing, or else what is missing for it and a recording.
func demonstrate(ctx context.Context, o options) error {
	missing, err := lacking(ctx, o.binary)
	if err != nil {
		return err
	}
	if missing == "" {
		err := run(ctx, o)
		if o.live || !errors.Is(err, testenv.ErrPrivilege) {
			return err
		}
		missing = fmt.Sprintf("  %v\n    do:  run as root, in a container with CAP_SYS_ADMIN\n", err)
	}
	fmt.Printf("dtagent cannot trace on this machine. What is missing:\n%s", missing)
	if o.live {
		return errors.New("the real thing was asked for, and is not possible here")
	}
	return play(ctx, o)
}

func run(ctx context.Context, o options) (err error) {
	binary, zipkin := o.binary, o.zipkin
	dir, err := os.MkdirTemp("", "dtagent-demo-")
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "dtagent-demo-work-")
	if err != nil {
		return err
	}
	defer func() {
		os.RemoveAll(work)
		if err != nil {
			os.RemoveAll(dir)
			return
		}
		for _, d := range []string{"observers.d", "run", "proc"} { // only the spans stay
			os.RemoveAll(filepath.Join(dir, d))
		}
	}()

	say("Starting the simulated dom0: xapi, message-switch, xenopsd-xc, SM, stunnel.")
	dom0, err := testenv.Start(ctx, testenv.Options{Dir: work, Knobs: testenv.Knobs{
		AtomTime: map[string]time.Duration{"*": 3 * time.Millisecond, "VM_build": 25 * time.Millisecond, "VM_shutdown_domain": 60 * time.Millisecond},
		Delay:    map[config.Layer]time.Duration{config.LayerSM: 40 * time.Millisecond},
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom0.Close()) }()
	vm := dom0.VMs()[0]
	if err := bootVM(ctx, dom0, vm); err != nil {
		return err
	}

	say("Starting the agent: dtagent run")
	// Only the simulated dom0: on a real one the demonstration must not show
	// the real toolstack.
	do := daemon.Options{Binary: binary, Log: o.log, Dir: dir, Only: slices.Collect(maps.Values(dom0.Processes())), Args: []string{"--host-uuid", dom0.HostUUID(), "--host-name", "demo-host"}}
	agent, err := daemon.Start(ctx, do)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Stop()) }()

	endpoints := "bugtool"
	if zipkin != "" {
		endpoints += "," + zipkin
	}
	create := []string{"observer", "create", "name-label=demo", "enabled=true", "endpoints=" + endpoints, "attributes=demo:yes", "attributes:dtagent.batch.interval=1s"}
	say("Creating an Observer: dtagent %s", strings.Join(create, " "))
	if _, err := agent.Run(ctx, create...); err != nil {
		return err
	}
	if err := agent.Wait(ctx, 10*time.Second, "has attached its probes and found xapi and xenopsd", watching); err != nil {
		return err
	}

	recorder, err := startRecorder(ctx, o, dir, agent)
	if err != nil {
		return err
	}
	defer recorder.kill()
	say("A partner's script shuts %s down: traceparent 00-%s-%s-00", vm.Name, shutdownTrace, shutdownSpan)
	if err := shutdownVM(ctx, dom0, vm); err != nil {
		return err
	}
	say("Another starts it again, asynchronously: traceparent 00-%s-%s-01", startTrace, startSpan)
	if err := startVM(ctx, dom0, vm); err != nil {
		return err
	}
	if err := agent.Settled(ctx, 30*time.Second); err != nil {
		return err
	}

	if err := recorder.end(); err != nil {
		return err
	}

	status, err := agent.Status(ctx)
	if err != nil {
		return err
	}
	if err := show(ctx, binary, agent.SpansDir()); err != nil {
		return fmt.Errorf("%w\n%s", err, agent.Log())
	}
	return report(agent, status)
}

// say prints what happens next.
func say(format string, args ...any) { fmt.Printf("· "+format+"\n", args...) }

func watching(s *control.Status) bool {
	found := map[string]bool{}
	for _, t := range s.Targets {
		found[t.Component] = true
	}
	return len(s.Probes) > 0 && found["xapi"] && found["xenopsd"]
}

// bootVM starts the VM before anybody looks, so that there is one to shut down.
func bootVM(ctx context.Context, dom0 *testenv.Dom0, vm testenv.VM) error {
	c := client.Unix(dom0.XapiSocket(), client.Options{KeepAlive: true})
	defer c.Close()
	session, err := c.Login(ctx)
	if err != nil {
		return err
	}
	_, err = c.Call(ctx, "VM.start", session, vm.Ref, false, false)
	return err
}

// shutdownVM sends what the XenServer documentation's script sends.
func shutdownVM(ctx context.Context, dom0 *testenv.Dom0, vm testenv.VM) error {
	c := client.TCP(dom0.Addr().String(), client.Options{Shape: client.Python, KeepAlive: true,
		Traceparent: "00-" + shutdownTrace + "-" + shutdownSpan + "-00", Tracestate: tracestate})
	defer c.Close()
	session, err := c.Login(ctx)
	if err != nil {
		return err
	}
	refs, err := c.Call(ctx, "VM.get_by_name_label", session, vm.Name)
	if err != nil {
		return err
	}
	list, ok := refs.([]any)
	if !ok || len(list) == 0 {
		return fmt.Errorf("VM.get_by_name_label: %v", refs)
	}
	_, err = c.Call(ctx, "VM.shutdown", session, list[0])
	return err
}

// startVM starts the VM by a task and waits for it.
func startVM(ctx context.Context, dom0 *testenv.Dom0, vm testenv.VM) error {
	plain := client.Unix(dom0.XapiSocket(), client.Options{Shape: client.Node, KeepAlive: true})
	defer plain.Close()
	session, err := plain.Login(ctx)
	if err != nil {
		return err
	}
	c := plain.With(client.Options{Shape: client.Node, Traceparent: "00-" + startTrace + "-" + startSpan + "-01"})
	defer c.Close()
	task, err := c.Call(ctx, "Async.VM.start", session, vm.Ref, false, false)
	if err != nil {
		return err
	}
	for {
		state, err := plain.Call(ctx, "task.get_status", session, task)
		if err != nil {
			return err
		}
		if state != "pending" {
			if state != "success" {
				return fmt.Errorf("Async.VM.start: task ended with %v", state)
			}
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// show prints the two traces from bugtool files.
func show(ctx context.Context, binary, dir string) error {
	for _, id := range []string{shutdownTrace, startTrace} {
		fmt.Println()
		out, err := dtagent(ctx, binary, "trace", "--file", dir, "--trace-id", id)
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) == "" {
			return fmt.Errorf("no span of trace %s came out", id)
		}
		fmt.Print(out)
	}
	return nil
}

// report says where the spans are and what became of them.
func report(agent *daemon.Daemon, s *control.Status) error {
	say("%d spans, %d of them incomplete; the agent took %.2f s of CPU and %.1f MiB", s.Engine.Spans, s.Engine.Incomplete, s.Process.CPUSeconds, float64(s.Process.RSSBytes)/(1<<20))
	say("%d events lost", s.Lost())
	for _, o := range s.Observers {
		for _, e := range o.Endpoints {
			say("endpoint %s: %d sent, %d dropped %s", e.Endpoint, e.Sent, e.Lost(), e.LastError)
		}
	}
	return list(agent.SpansDir())
}

// list names the files of spans.
func list(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	say("The spans are in these files; xs-trace and every zipkin receiver read them:")
	for _, f := range files {
		fmt.Println("   ", f)
	}
	return nil
}
