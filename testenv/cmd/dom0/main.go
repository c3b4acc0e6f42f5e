//go:build linux

// Command dom0 is every program of a simulated dom0, by the name under which it is
// run, and starts one:
//
//	dom0 up [flags]            start a dom0, or a pool, and wait for a signal
//	dom0 exec PID command…     run a command in the dom0 whose launcher has that pid
//	dom0 load [flags] ADDRESS  call xapi many times
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
	"github.com/xenserver/dtagent/testenv/config"
	_ "github.com/xenserver/dtagent/testenv/internal/early" // vfork_helper, xenguest, tap-ctl
	"github.com/xenserver/dtagent/testenv/internal/helper"
	"github.com/xenserver/dtagent/testenv/internal/launch"
	"github.com/xenserver/dtagent/testenv/internal/mswitch"
	"github.com/xenserver/dtagent/testenv/internal/networkd"
	"github.com/xenserver/dtagent/testenv/internal/node"
	"github.com/xenserver/dtagent/testenv/internal/rrdd"
	"github.com/xenserver/dtagent/testenv/internal/slowfile"
	"github.com/xenserver/dtagent/testenv/internal/squeezed"
	"github.com/xenserver/dtagent/testenv/internal/xapi"
	"github.com/xenserver/dtagent/testenv/internal/xenopsd"
)

func init() { runtime.LockOSThread() } // main stays on the main thread

func main() {
	name := filepath.Base(os.Args[0])
	if err := run(name, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "sm-python3":
		return helper.SM(args)
	case "python3": // python3 -m observer <script> <call>
		if len(args) < 2 || args[0] != "-m" || args[1] != "observer" {
			return errors.New("this python3 knows -m observer only")
		}
		return helper.SM(args[2:])
	case filepath.Base(slowfile.Server):
		return slowfile.Serve(3, 0)
	case "rsyslogd":
		return daemon(name, "", helper.Syslog)
	case "stunnel":
		if len(args) > 0 && args[0] == "-fd" {
			return helper.StunnelClient(args)
		}
		return daemon(name, "", helper.Stunnel)
	case "message-switch":
		return daemon(name, "", messageSwitch)
	case "squeezed":
		return daemon(name, name, func(p *node.Proc) error {
			if err := squeezed.Run(p); err != nil {
				return err
			}
			return serve(p, nil)
		})
	case "xcp-networkd":
		return daemon(name, name, func(p *node.Proc) error {
			if err := networkd.Run(p); err != nil {
				return err
			}
			return serve(p, nil)
		})
	case "xcp-rrdd":
		return daemon(name, name, func(p *node.Proc) error {
			if err := rrdd.Run(p); err != nil {
				return err
			}
			return serve(p, nil)
		})
	case "xenopsd-xc":
		return daemon(name, "xenopsd", func(p *node.Proc) error {
			if err := xenopsd.Run(p); err != nil {
				return err
			}
			return serve(p, nil)
		})
	case "xapi":
		return daemon(name, "xapi", func(p *node.Proc) error {
			port, err := xapi.Run(p)
			if err != nil {
				return err
			}
			return serve(p, port)
		})
	}
	if len(args) == 0 {
		return errors.New("usage: dom0 up|exec|load …")
	}
	switch verb, rest := args[0], args[1:]; verb {
	case "init":
		if len(rest) != 1 {
			return errors.New("init is for package testenv")
		}
		return launch.Run(rest[0])
	case "exec":
		return enter(rest)
	case "up":
		return up(rest)
	case "load":
		return load(rest)
	default:
		return fmt.Errorf("no verb %q; there are up, exec, load", verb)
	}
}

func daemon(name, component string, f func(*node.Proc) error) error {
	p, err := node.Start(name, component)
	if err != nil {
		return err
	}
	return f(p)
}

// serve says that all threads are there; the main thread has nothing left to do.
func serve(p *node.Proc, value any) error {
	if err := p.Ready(value); err != nil {
		return err
	}
	for {
		if err := unix.Pause(); err != unix.EINTR {
			return fmt.Errorf("pause: %w", err)
		}
	}
}

func messageSwitch(p *node.Proc) error {
	s, err := mswitch.NewServer()
	if err != nil {
		return err
	}
	s.HandOver = func() { p.Main().Delay(config.LayerSwitch) }
	if err := p.Ready(nil); err != nil {
		return err
	}
	return s.Run()
}

// enter runs a command in the mount and network namespaces of a process.
func enter(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: dom0 exec PID command…")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("pid %q: %w", args[0], err)
	}
	var fds []int
	for _, kind := range []string{"net", "mnt"} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("namespace of %d: %w", pid, err)
		}
		fds = append(fds, fd)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns wants a thread with a root of its own
		return fmt.Errorf("unshare: %w", err)
	}
	for _, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil { // of the kind that it is
			return fmt.Errorf("setns: %w", err)
		}
	}
	path := args[1]
	if !strings.Contains(path, "/") {
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			if unix.Access(filepath.Join(dir, path), unix.X_OK) == nil {
				path = filepath.Join(dir, path)
				break
			}
		}
	}
	if err := syscall.Exec(path, args[1:], os.Environ()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func up(args []string) error {
	var o testenv.Options
	f := flag.NewFlagSet("dom0 up", flag.ContinueOnError)
	f.StringVar(&o.Dir, "dir", "", "directory for truth, devlog and logs")
	port := f.Uint("port", 0, "TCP port of xapi")
	tlsPort := f.Uint("tls-port", 0, "TCP port of stunnel")
	f.IntVar(&o.VMs, "vms", 1, "guests")
	f.IntVar(&o.Disks, "disks", 1, "disks of each guest; -1: none")
	f.IntVar(&o.NICs, "nics", 1, "network interfaces of each guest; -1: none")
	f.BoolVar(&o.Forkexecd, "forkexecd", false, "forkexecd, the daemon, starts programs, as before 25.14")
	f.BoolVar(&o.Background, "background", true, "the toolstack's own background work")
	f.BoolVar(&o.NoTruth, "no-truth", false, "write no truth")
	f.BoolVar(&o.Knobs.Verbose, "verbose", false, "log what a dom0 mutes")
	native := f.String("native", "off", "the toolstack's own tracing: off, on, bare, observer (as the pool's Observers say)")
	f.BoolVar(&o.EndpointHTTP, "endpoint-http", true, "Observers may have URLs as endpoints")
	f.BoolVar(&o.Knobs.LogTrace, "log-trace", true, "with native tracing, traceparents in log lines")
	pool := f.Bool("pool", false, "start a pool, of a coordinator and a member, each in a network namespace of its own")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch *native {
	case "on":
		o.Knobs.Native = config.NativeOn
	case "bare":
		o.Knobs.Native = config.NativeBare
	case "observer":
		o.NativeByObserver = true
	case "off":
	default:
		return fmt.Errorf("native %q; there are off, on, bare, observer", *native)
	}
	o.Port, o.TLSPort = uint16(*port), uint16(*tlsPort)
	var err error
	if o.Binary, err = os.Executable(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *pool {
		p, err := testenv.StartPool(context.Background(), testenv.PoolOptions{Options: o})
		if err != nil {
			return err
		}
		return show(ctx, map[string]any{"coordinator": describe(p.Coordinator), "member": describe(p.Member)}, p)
	}
	d, err := testenv.Start(context.Background(), o)
	if err != nil {
		return err
	}
	return show(ctx, describe(d), d)
}

func describe(d *testenv.Dom0) map[string]any {
	return map[string]any{"dir": d.Dir(), "socket": d.XapiSocket(), "addr": d.Addr().String(), "tls": d.TLSAddr().String(), "processes": d.Processes(), "vms": d.VMs(), "host": d.HostUUID()}
}

// show prints what has been started, and closes it when ctx ends.
func show(ctx context.Context, info map[string]any, c io.Closer) error {
	if err := json.NewEncoder(os.Stdout).Encode(info); err != nil {
		return errors.Join(err, c.Close())
	}
	<-ctx.Done()
	return c.Close()
}

func load(args []string) error {
	o := client.LoadOptions{}
	c := client.Options{}
	f := flag.NewFlagSet("dom0 load", flag.ContinueOnError)
	f.IntVar(&o.Connections, "connections", 4, "clients at once")
	f.Float64Var(&o.Rate, "rate", 0, "calls a second; 0: as many as possible")
	f.IntVar(&o.Count, "count", 0, "calls; 0: no limit")
	f.DurationVar(&o.Duration, "duration", 5*time.Second, "length; 0: no limit")
	f.BoolVar(&c.KeepAlive, "keep-alive", true, "one connection a client")
	f.StringVar(&c.Traceparent, "traceparent", "", "header of each call")
	shape := f.String("shape", "python", "python, node, json1")
	method := f.String("method", "VM.get_by_name_label", "method called")
	param := f.String("param", "vm-1", "its one parameter behind the session; empty for none")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("usage: dom0 load [flags] ADDRESS (a path or host:port)")
	}
	switch *shape {
	case "node":
		c.Shape = client.Node
	case "json1":
		c.Shape = client.JSON1
	case "python":
	default:
		return fmt.Errorf("shape %q; there are python, node, json1", *shape)
	}
	call := client.Call{Method: *method}
	if *param != "" {
		call.Params = []any{*param}
	}
	o.Calls = []client.Call{call}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cl := client.TCP(f.Arg(0), c)
	if strings.HasPrefix(f.Arg(0), "/") {
		cl = client.Unix(f.Arg(0), c)
	}
	r, err := cl.Load(ctx, o)
	fmt.Println(r)
	return err
}
