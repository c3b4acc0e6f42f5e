package capture

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/xenserver/dtagent/probes/event"
)

// Processes is what was there before a recording began: its .fds file.
type Processes struct {
	Names   map[uint32]string   // tgid → "xapi"
	Threads map[uint32]uint32   // tid → tgid
	Sockets map[uint32][]Socket // tgid → open sockets
}

// Socket is an open socket of a process.
type Socket struct {
	FD  int32
	Ino uint64
}

// component returns the component of the daemon of that name, as
// probes/target would.
func component(name string) event.Component {
	switch name {
	case "xapi":
		return event.Xapi
	case "xenopsd-xc":
		return event.Xenopsd
	}
	return event.NoComponent
}

// ParseProcesses reads a .fds file: "name=pid …", lines of ls -l /proc/PID/fd
// led by the pid, and lines "pid tid TID name".
func ParseProcesses(b []byte) (*Processes, error) {
	p := &Processes{Names: make(map[uint32]string), Threads: make(map[uint32]uint32), Sockets: make(map[uint32][]Socket)}
	in := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; in.Scan(); n++ {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		if strings.Contains(words[0], "=") {
			for _, w := range words {
				name, pid, _ := strings.Cut(w, "=")
				tgid, err := strconv.ParseUint(pid, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("processes: line %d: %w", n, err)
				}
				p.Names[uint32(tgid)] = name
			}
			continue
		}
		tgid, err := strconv.ParseUint(words[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("processes: line %d: %w", n, err)
		}
		if len(words) >= 3 && words[1] == "tid" {
			tid, err := strconv.ParseUint(words[2], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("processes: line %d: %w", n, err)
			}
			p.Threads[uint32(tid)] = uint32(tgid)
			continue
		}
		if len(words) < 4 || words[len(words)-2] != "->" {
			continue
		}
		ino, ok := strings.CutPrefix(words[len(words)-1], "socket:[")
		if !ok {
			continue
		}
		s := Socket{}
		fd, err1 := strconv.ParseInt(words[len(words)-3], 10, 32)
		s.FD = int32(fd)
		var err2 error
		if s.Ino, err2 = strconv.ParseUint(strings.TrimSuffix(ino, "]"), 10, 64); err1 != nil || err2 != nil {
			return nil, fmt.Errorf("processes: line %d: not a descriptor: %s", n, in.Text())
		}
		p.Sockets[uint32(tgid)] = append(p.Sockets[uint32(tgid)], s)
	}
	return p, in.Err()
}

// Targets writes a .fds file with the processes that dtagent watches.
func (p *Processes) Targets() []byte {
	var heads []string
	var rest bytes.Buffer
	for _, tgid := range slices.Sorted(maps.Keys(p.Names)) {
		if component(p.Names[tgid]) == event.NoComponent {
			continue
		}
		heads = append(heads, fmt.Sprintf("%s=%d", p.Names[tgid], tgid))
		for _, s := range p.Sockets[tgid] {
			fmt.Fprintf(&rest, "%d %d -> socket:[%d]\n", tgid, s.FD, s.Ino)
		}
		for _, tid := range slices.Sorted(maps.Keys(p.Threads)) {
			if p.Threads[tid] == tgid {
				fmt.Fprintf(&rest, "%d tid %d\n", tgid, tid)
			}
		}
	}
	return append([]byte(strings.Join(heads, " ")+"\n"), rest.Bytes()...)
}
