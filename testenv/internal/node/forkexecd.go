//go:build linux

package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
	"github.com/xenserver/dtagent/testenv/truth"
)

// Forker is where forkexecd listens.
const Forker = "/var/xapi/forker/main"

// named is a descriptor that forkexecd is sent.
type named struct {
	uuid string
	want int // the number that it gets; < 0: any, which the arguments then have in place of the uuid
	fd   int
}

// execution is a program that forkexecd has started, and the connection on which
// its end is told.
type execution struct {
	sock, pid int
}

// execute has forkexecd start a program, as Forkhelpers did for all before 25.14:
// the request on one connection, the descriptors on another one, whose place the
// answer tells. s begins when the program can.
func execute(s *Span, args, env []string, fds []named) (_ *execution, err error) {
	sock, err := sys.ConnectUnix(Forker)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(sock)
		}
	}()
	where := map[string][]int{} // an option is a list
	for _, f := range fds {
		if where[f.uuid] = []int{}; f.want >= 0 {
			where[f.uuid] = append(where[f.uuid], f.want)
		}
	}
	if err := writeFrame(sock, []any{"Setup", struct {
		Args     []string         `json:"cmdargs"`
		Env      []string         `json:"env"`
		FDs      map[string][]int `json:"id_to_fd_map"`
		Syslog   map[string]bool  `json:"syslog_stdout"`
		Redirect bool             `json:"redirect_stderr_to_stdout"`
	}{args, env, where, map[string]bool{"enabled": false}, false}}); err != nil {
		return nil, err
	}
	var at struct {
		Path string `json:"fd_sock_path"`
	}
	if err := readFrame(sock, "Setup_response", &at); err != nil {
		return nil, err
	}
	to, err := sys.ConnectUnix(at.Path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(to)
	for _, f := range fds {
		for {
			err := unix.Sendmsg(to, []byte(f.uuid), unix.UnixRights(f.fd), nil, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("forkexecd: descriptor: %w", err)
			}
			break
		}
	}
	s.Start = truth.Now()
	if err := writeFrame(sock, "Exec"); err != nil {
		return nil, err
	}
	e := &execution{sock: sock}
	return e, readFrame(sock, "Execed", &e.pid)
}

// wait waits on the calling thread until forkexecd tells the program's end.
func (e *execution) wait() (unix.WaitStatus, error) {
	defer unix.Close(e.sock)
	var end []json.RawMessage
	if err := readFrame(e.sock, "Finished", &end); err != nil {
		return 0, err
	}
	var how string
	var n uint32
	if len(end) != 2 || json.Unmarshal(end[0], &how) != nil || json.Unmarshal(end[1], &n) != nil {
		return 0, fmt.Errorf("forkexecd: Finished %s", end)
	}
	if how == "WEXITED" {
		return unix.WaitStatus(n << 8), nil
	}
	return unix.WaitStatus(n), nil
}

// frameDigits is the length of a frame's length.
const frameDigits = 12

func writeFrame(fd int, v any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	text := bytes.TrimSuffix(body.Bytes(), []byte("\n"))
	if err := sys.Write(fd, append(fmt.Appendf(nil, "%0*d", frameDigits, len(text)), text...)); err != nil {
		return fmt.Errorf("forkexecd: %w", err)
	}
	return nil
}

// readFrame reads a frame of that kind into v.
func readFrame(fd int, kind string, v any) error {
	head := make([]byte, frameDigits)
	if err := sys.ReadFull(fd, head); err != nil {
		return fmt.Errorf("forkexecd: %w", err)
	}
	n, err := strconv.Atoi(string(head))
	if err != nil || n < 0 || n > sys.Piece {
		return fmt.Errorf("forkexecd: frame of length %q", head)
	}
	body := make([]byte, n)
	if err := sys.ReadFull(fd, body); err != nil {
		return fmt.Errorf("forkexecd: %w", err)
	}
	var got string
	var parts []json.RawMessage
	if json.Unmarshal(body, &parts) != nil || len(parts) != 2 || json.Unmarshal(parts[0], &got) != nil || got != kind {
		return fmt.Errorf("forkexecd: %.100q, not %s", body, kind)
	}
	return json.Unmarshal(parts[1], v)
}

func newUUID() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&0xffffffffffff)
}
