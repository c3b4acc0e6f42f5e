//go:build linux

package packaging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/xenserver/dtagent/cmd/dtagent/control"
)

// patience ends a wait that would last for ever; nothing is expected to take so long.
const patience = 3 * time.Minute

// testWatchdog is what the service is told instead of the unit's WatchdogSec.
const testWatchdog = 3 * time.Second

// service is the agent as its unit starts it. It stands in for systemd: it hears what
// the agent tells, and ends it as systemd does.
type service struct {
	h        *host
	without  []string // capabilities of the unit that it is not given
	cmd      *exec.Cmd
	done     chan struct{} // closed when it has ended
	err      error         // of Wait; read after done
	socket   *net.UnixConn
	messages chan string
	log      log
}

// log keeps what is written to it.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// unit returns the files of the unit that is installed.
func (h *host) unit() []string {
	const unit = "/usr/lib/systemd/system/dtagent.service"
	more, _ := filepath.Glob(h.inside(unit + ".d/*.conf"))
	return append([]string{h.inside(unit)}, more...)
}

// start starts the service and waits until it is ready.
func (s *service) start() error {
	lines, err := readUnit(s.h.unit()...)
	if err != nil {
		return err
	}
	writable := words(lines, "ReadWritePaths")
	for name, below := range map[string]string{"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "LogsDirectory": "/var/log"} {
		dir := filepath.Join(below, last(lines, name))
		if err := os.MkdirAll(filepath.Join(s.h.root, dir), 0o700); err != nil {
			return err
		}
		writable = append(writable, dir)
	}
	var keep []string
	for _, c := range words(lines, "CapabilityBoundingSet") {
		if !slices.Contains(s.without, c) {
			keep = append(keep, c)
		}
	}
	address := &net.UnixAddr{Name: fmt.Sprintf("@dtagent-packaging-%d-%p", os.Getpid(), s), Net: "unixgram"}
	socket, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		return err
	}
	s.socket, s.done, s.messages = socket, make(chan struct{}), make(chan string, 1024)
	go func() {
		defer close(s.messages)
		for b := make([]byte, 4096); ; {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			s.messages <- string(b[:n])
		}
	}()
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Env = append(os.Environ(), helperMode+"=service",
		"HOST_ROOT="+s.h.root, fmt.Sprintf("HOST_NS=/proc/%d/ns/mnt", s.h.proc), "HOST_EXEC="+last(lines, "ExecStart"),
		"HOST_CAPABILITIES="+strings.Join(keep, " "), "HOST_WRITABLE="+strings.Join(writable, " "), "HOST_MEMLOCK="+last(lines, "LimitMEMLOCK"),
		"NOTIFY_SOCKET="+address.Name, fmt.Sprintf("WATCHDOG_USEC=%d", testWatchdog.Microseconds()))
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
		socket.Close()
	}()
	return s.hears("READY=1")
}

// manager is what a host has of systemd: it knows the one service that runs.
type manager struct {
	h       *host
	without []string // as service has it

	mu      sync.Mutex
	current *service // nil: none runs
	starts  int
}

// do does what systemctl is told.
func (m *manager) do(verb string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if verb == "try-restart" && m.current == nil {
		return nil
	}
	var err error
	if strings.HasSuffix(verb, "restart") || verb == "stop" {
		if m.current != nil {
			err = m.current.stop()
		}
		m.current = nil
	}
	if strings.HasSuffix(verb, "start") {
		m.starts++
		m.current = &service{h: m.h, without: m.without}
		err = errors.Join(err, m.current.start())
	}
	return err
}

// now returns the service that runs, or nil, and how many were started.
func (m *manager) now() (*service, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current, m.starts
}

// hears waits until the agent tells what.
func (s *service) hears(what string) error {
	end := time.After(patience)
	for {
		select {
		case m, ok := <-s.messages:
			if !ok {
				<-s.done
				return fmt.Errorf("the service ended before it told %s: %w\n%s", what, errors.Join(s.err), s.log.String())
			}
			if m == what {
				return nil
			}
		case <-end:
			return fmt.Errorf("the service does not tell %s\n%s", what, s.log.String())
		}
	}
}

// stop ends the service, which must end well.
func (s *service) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	if err := s.ends(); err != nil {
		return err
	}
	if s.err != nil {
		return fmt.Errorf("the service: %w\n%s", s.err, s.log.String())
	}
	return nil
}

// ends waits until the service has ended.
func (s *service) ends() error {
	select {
	case <-s.done:
		return nil
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("the service does not end\n%s", s.log.String())
	}
}

// status asks the agent, as an administrator does.
func (s *service) status() (*control.Status, error) {
	out, err := s.h.run("/usr/sbin/dtagent", "status", "--json")
	if err != nil {
		return nil, err
	}
	st := new(control.Status)
	return st, json.Unmarshal([]byte(out), st)
}

// until waits until the agent's status suits ok.
func (s *service) until(what string, ok func(*control.Status) bool) error {
	var st *control.Status
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if st, err = s.status(); err == nil && ok(st) {
			return nil
		}
	}
	shown, _ := json.MarshalIndent(st, "", " ")
	return fmt.Errorf("the agent never %s: %v\n%s\n%s", what, err, shown, s.log.String())
}
