//go:build linux

package helper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// pause sleeps for DOM0_DELAY_US, which the caller set.
func pause() {
	if us, err := strconv.Atoi(os.Getenv("DOM0_DELAY_US")); err == nil {
		sys.Sleep(time.Duration(us) * time.Microsecond)
	}
}

// SM is an SM script in its interpreter: args are the script and its call. It asks
// xapi for the disk, starts tap-ctl, and answers.
func SM(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: %v <call>", args)
	}
	call := args[1]
	op := between(call, "<methodName>", "</methodName>")
	session := between(call, "<name>session_ref</name><value>", "</value>")
	vdi := between(call, "<name>vdi_uuid</name><value>", "</value>")
	x, err := sys.ConnectUnix("/var/lib/xcp/xapi")
	if err != nil {
		return err
	}
	for _, m := range [][2]string{{"VDI.get_by_uuid", vdi}, {"VDI.get_sm_config", "OpaqueRef:" + vdi}} {
		if err := rpc(x, m[0], session, m[1]); err != nil {
			return err
		}
	}
	unix.Close(x)
	pause()
	if code := os.Getenv("DOM0_FAIL"); code != "" {
		return sys.Write(1, []byte("<?xml version='1.0'?>\n<methodResponse>\n<fault><value><struct><member><name>faultCode</name><value><int>46</int></value></member><member><name>faultString</name><value>"+code+"</value></member></struct></value></fault>\n</methodResponse>\n"))
	}
	if err := tapctl(op, vdi); err != nil {
		return err
	}
	return sys.Write(1, []byte("<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value><string>/dev/sm/backend/"+vdi+"</string></value>\n</param>\n</params>\n</methodResponse>\n"))
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// rpc is a call as Python's xmlrpc.client makes it: header and body in one send each.
func rpc(fd int, method, session, arg string) error {
	body := "<?xml version='1.0'?>\n<methodCall>\n<methodName>" + method + "</methodName>\n<params>\n<param>\n<value><string>" + session +
		"</string></value>\n</param>\n<param>\n<value><string>" + arg + "</string></value>\n</param>\n</params>\n</methodCall>\n"
	head := "POST / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nContent-Type: text/xml\r\nUser-Agent: Python-xmlrpc/3.6\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	if err := sys.Send(fd, []byte(head)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if err := sys.Send(fd, []byte(body)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	var in []byte
	buf := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("%s: connection ended: %v", method, err)
		}
		in = append(in, buf[:n]...)
		head, rest, ok := bytes.Cut(in, []byte("\r\n\r\n"))
		if !ok {
			continue
		}
		size, err := strconv.Atoi(between(string(head), "content-length: ", "\r"))
		if err != nil {
			return fmt.Errorf("%s: answer %.100q", method, head)
		}
		if len(rest) >= size {
			if !bytes.Contains(rest, []byte("<value>Success</value>")) {
				return fmt.Errorf("%s: failed", method)
			}
			return nil
		}
	}
}

// tapctl runs tap-ctl as a child, and writes that down.
func tapctl(op, vdi string) error {
	word := map[string]string{"vdi_attach": "allocate", "vdi_activate": "open", "vdi_deactivate": "close", "vdi_detach": "free"}[op]
	begun := truth.Now()
	pid, err := syscall.ForkExec("/usr/sbin/tap-ctl", []string{"/usr/sbin/tap-ctl", word, "-p", "1", "-a", "vhd:/dev/VG_XenStorage/" + vdi},
		&syscall.ProcAttr{Env: []string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin"}, Files: []uintptr{0, 2, 2}})
	if err != nil {
		return fmt.Errorf("tap-ctl: %w", err)
	}
	var ws unix.WaitStatus
	for {
		if _, err = unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	if err != nil || ws.ExitStatus() != 0 {
		return fmt.Errorf("tap-ctl: exit status %d: %v", ws.ExitStatus(), err)
	}
	dir := os.Getenv("DOM0_TRUTH")
	if dir == "" {
		return nil
	}
	w, err := truth.NewWriter(dir, "sm")
	if err != nil {
		return err
	}
	w.Add(truth.Entry{ID: w.ID(), ParentKey: "pid:" + strconv.Itoa(os.Getpid()), Kind: truth.Process, Name: "tap-ctl", Component: "smapi",
		Start: begun, End: truth.Now(), TGID: uint32(pid), TID: uint32(pid)})
	return w.Flush()
}
