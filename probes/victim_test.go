//go:build linux

package probes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// A victim is this test binary under another name, run once more as a real
// process that serves HTTP on a unix socket as xapi does: a thread for each
// connection, a header read in pieces of 6, 12 and then 4 bytes, a body in one
// read, an answer in two writes.

const (
	victimEnv = "DTAGENT_PROBES_TEST_VICTIM"
	canary    = "Canary7f3aPa55word"
	session   = "OpaqueRef:9e25edb4-49f5-33d2-f640-7e383521a752"
	task      = "OpaqueRef:8ae06e1e-a3d1-1111-2222-333344445555"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, "victim:", err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if proc.dir != "" {
		os.RemoveAll(proc.dir) // links
	}
	os.Exit(code)
}

// serve listens on dir/socket and logs to dir/log until stdin ends.
func serve(dir string) error {
	ln, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(ln, &unix.SockaddrUnix{Name: dir + "/socket"}); err != nil {
		return err
	}
	if err := unix.Listen(ln, 128); err != nil {
		return err
	}
	log, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(log, &unix.SockaddrUnix{Name: dir + "/log"}); err != nil {
		return err
	}
	go func() {
		for {
			fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with the connection
				defer unix.Close(fd)
				for serveOne(dir, fd, log) {
				}
			}()
		}
	}()
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// serveOne serves one request.
func serveOne(dir string, fd, log int) bool {
	var head []byte
	for _, n := range []int{6, 12} {
		b, ok := readN(fd, n)
		if !ok {
			return false
		}
		head = append(head, b...)
	}
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		n := 4
		for k := 3; k > 0; k-- {
			if bytes.HasSuffix(head, []byte("\r\n\r\n")[:k]) {
				n = 4 - k
				break
			}
		}
		b, ok := readN(fd, n)
		if !ok {
			return false
		}
		head = append(head, b...)
	}
	_, rest, _ := bytes.Cut(head, []byte("content-length: "))
	length, _ := strconv.Atoi(string(rest[:bytes.IndexByte(rest, '\r')]))
	body, ok := readN(fd, length)
	if !ok {
		return false
	}
	line := "<175>Nov 22 12:23:14 xapi: [debug||60 /var/lib/xcp/xapi|session.login D:7fab96eb5fb1|db_write] create_row session (" + session + ") password=" + canary
	result := session
	switch {
	case bytes.Contains(body, []byte("Async.")):
		result = task
		line = "<175>Nov 22 12:23:14 xapi: [debug||60 |dispatch:VM.start D:7fab96eb5fb1|dispatcher] spawning a new thread to handle the current task (trackid=fda2d175b935dd6aa2c32cf5043ef959)"
	case bytes.Contains(body, []byte("SR.scan")):
		cmd := exec.Command(dir+"/sm/LVMSR", "<?xml version='1.0'?><methodCall><methodName>sr_scan</methodName><params><param><value>"+session+canary)
		if err := cmd.Run(); err != nil {
			return false
		}
	}
	if err := unix.Sendto(log, []byte(line), unix.MSG_NOSIGNAL, nil); err != nil {
		return false
	}
	reply := fmt.Sprintf(`<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value>%s</value></member></struct></value></param></params></methodResponse>`, result)
	for _, s := range []string{fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n", len(reply)), reply} {
		if _, err := unix.Write(fd, []byte(s)); err != nil {
			return false
		}
	}
	return true
}

// readN reads exactly n bytes in as many calls as it takes.
func readN(fd, n int) ([]byte, bool) {
	b := make([]byte, n)
	for have := 0; have < n; {
		m, err := unix.Read(fd, b[have:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return nil, false
		}
		have += m
	}
	return b, true
}

// victim is a running process of the given name.
type victim struct {
	t    testing.TB
	dir  string
	cmd  *exec.Cmd
	in   io.Closer
	tgid uint32

	shown string // link to it in victimsProc
}

func startVictim(t testing.TB, name string) *victim {
	t.Helper()
	dir, err := os.MkdirTemp("", "dt") // short: the path of a unix socket
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(dir, name), self, 0o755)))
	qt.Assert(t, qt.IsNil(os.Mkdir(dir+"/sm", 0o755)))
	qt.Assert(t, qt.IsNil(os.WriteFile(dir+"/sm/LVMSR", []byte("#!/bin/sh\n/bin/true\n/bin/echo >/dev/null\n"), 0o755)))
	ln, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/log", Net: "unixgram"})
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() { ln.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			if _, err := ln.Read(b); err != nil {
				return
			}
		}
	}()
	v := &victim{t: t, dir: dir}
	v.start(name)
	return v
}

// start runs the victim, again if it has ended.
func (v *victim) start(name string) {
	v.t.Helper()
	os.Remove(v.dir + "/socket")
	v.cmd = exec.Command(filepath.Join(v.dir, name))
	v.cmd.Env = append(os.Environ(), victimEnv+"="+v.dir)
	v.cmd.Stderr = os.Stderr
	in, err := v.cmd.StdinPipe()
	qt.Assert(v.t, qt.IsNil(err))
	out, err := v.cmd.StdoutPipe()
	qt.Assert(v.t, qt.IsNil(err))
	qt.Assert(v.t, qt.IsNil(v.cmd.Start()))
	v.in, v.tgid = in, uint32(v.cmd.Process.Pid)
	v.shown = filepath.Join(victimsProc(v.t), fmt.Sprint(v.tgid))
	_ = os.Remove(v.shown) // of an earlier user of the pid
	qt.Assert(v.t, qt.IsNil(os.Symlink(fmt.Sprint("/proc/", v.tgid), v.shown)))
	v.t.Cleanup(v.end)
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	qt.Assert(v.t, qt.IsNil(err))
}

func (v *victim) end() {
	v.in.Close()
	v.cmd.Wait()
	os.Remove(v.shown)
}

// proc is the directory like /proc that victimsProc makes.
var proc struct {
	sync.Once
	dir string
	err error
}

// victimsProc is a directory like /proc that shows no processes but victims.
// Programs of the same names that run for other tests would be watched too, and
// what they do can be more than a test's reader takes.
func victimsProc(t testing.TB) string {
	t.Helper()
	proc.Do(func() {
		proc.dir, proc.err = os.MkdirTemp("", "dtproc")
		for _, name := range []string{"self", "net", "stat", "uptime"} {
			if proc.err == nil {
				proc.err = os.Symlink("/proc/"+name, filepath.Join(proc.dir, name))
			}
		}
	})
	qt.Assert(t, qt.IsNil(proc.err))
	return proc.dir
}

// client is one connection to the victim.
type client struct {
	t testing.TB
	c net.Conn
}

func (v *victim) dial() *client {
	v.t.Helper()
	c, err := net.Dial("unix", v.dir+"/socket")
	qt.Assert(v.t, qt.IsNil(err))
	v.t.Cleanup(func() { c.Close() })
	return &client{v.t, c}
}

// call sends one XML-RPC request and reads the reply.
func (c *client) call(method string, params ...string) {
	c.t.Helper()
	body := "<?xml version='1.0'?>\n<methodCall>\n<methodName>" + method + "</methodName>\n<params>\n<param><value><string>" +
		strings.Join(params, "</string></value></param>\n<param><value><string>") + "</string></value></param>\n</params>\n</methodCall>\n"
	fmt.Fprintf(c.c, "POST / HTTP/1.1\r\nhost: localhost\r\nuser-agent: Python-xmlrpc/3.11\r\ntraceparent: 00-3100a3ead5c4210a99c27e3e5578158c-34991b6261208b64-00\r\ncookie: session_id=%s\r\nauthorization: Basic %s\r\ncontent-length: %d\r\n\r\n%s",
		session, canary, len(body), body)
	c.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	var got []byte
	b := make([]byte, 4096)
	for !bytes.HasSuffix(got, []byte("</methodResponse>")) {
		n, err := c.c.Read(b)
		qt.Assert(c.t, qt.IsNil(err))
		got = append(got, b[:n]...)
	}
}

// marshal is for failure messages.
func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
