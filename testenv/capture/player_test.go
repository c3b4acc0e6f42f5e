//go:build linux

package capture

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A player is this test binary run once more as a process that makes a random
// but repeatable sequence of system calls on one thread and then tells what
// came of each.

const playerEnv = "DTAGENT_CAPTURE_TEST_PLAYER"

func TestMain(m *testing.M) {
	if os.Getenv(playerEnv) != "" {
		play()
		return
	}
	os.Exit(m.Run())
}

// step is one system call.
type step struct {
	Call string // "pair", "socket", "read", "write", "log", "shutdown", "close"
	FD   int
	Ask  int
	Seed uint64 // of what is written
	FDs  [2]int // of a pair or socket
	Ret  int
}

// content is what a step writes.
func (s *step) content() []byte {
	r := rand.New(rand.NewPCG(s.Seed, 0))
	b := make([]byte, s.Ask)
	for i := range b {
		b[i] = 'a' + byte(r.IntN(26))
	}
	if r.IntN(4) == 0 {
		copy(b, []string{"POST /transfer HTTP/1.1\r\n", "GET /ack/q/1 HTTP/1.1", "POST / HTTP/1.1\r\n", "<175>"}[r.IntN(4)])
	}
	if r.IntN(3) == 0 && len(b) >= 4 {
		copy(b[len(b)-4:], "\r\n\r\n")
	}
	return b
}

// plan chooses the next call among the open descriptors.
func plan(r *rand.Rand, open []int) step {
	n := r.IntN(100)
	if len(open) == 0 || n < 3 && len(open) < 20 {
		return step{Call: "pair"}
	}
	if n == 3 {
		return step{Call: "socket"}
	}
	s := step{FD: open[r.IntN(len(open))], Seed: r.Uint64()}
	sizes := []int{1, 4, 6, 12, 60, 64, 65, 200, 256, 257, 1000, 1024, 4096, 4097, 5000, 16384, 17000, 65536}
	s.Ask = sizes[r.IntN(len(sizes))]
	if r.IntN(3) == 0 {
		s.Ask = 1 + r.IntN(64)
	}
	switch {
	case n < 45:
		s.Call = "read"
		if r.IntN(20) == 0 {
			s.Ask = 0
		}
	case n < 93:
		s.Call = "write"
	case n < 96:
		s.Call = "log"
		s.Ask = min(s.Ask, 16384)
	case n == 96:
		s.Call = "shutdown"
	default:
		s.Call = "close"
	}
	return s
}

const playerSteps = 1500

func play() {
	runtime.LockOSThread()
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(playerEnv), &seed); err != nil {
		panic(err)
	}
	log, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		panic(err)
	}
	fmt.Println(unix.Gettid())
	bufio.NewReader(os.Stdin).ReadString('\n') // the probes are there
	r := rand.New(rand.NewPCG(seed, 1))
	var open []int
	var done []step
	drain := make([]byte, 65536)
	for range playerSteps {
		// Stay with a descriptor for a while: runs of one direction are what is
		// of interest.
		s := plan(r, open)
		for range 1 + r.IntN(4) {
			s.Seed = r.Uint64()
			switch s.Call {
			case "pair":
				s.FDs, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					panic(err)
				}
				open = append(open, s.FDs[:]...)
			case "socket":
				s.FDs[0], err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					panic(err)
				}
				open = append(open, s.FDs[0])
			case "read":
				s.Ret = call(unix.SYS_READ, s.FD, drain[:s.Ask])
			case "write":
				s.Ret = call(unix.SYS_WRITE, s.FD, s.content())
			case "log":
				s.FD = log[0]
				s.Ret = call(unix.SYS_WRITE, log[0], append([]byte("<30>"), s.content()...))
				unix.Read(log[1], drain)
			case "shutdown":
				unix.Shutdown(s.FD, unix.SHUT_WR)
			case "close":
				unix.Close(s.FD)
				open = slices.DeleteFunc(open, func(fd int) bool { return fd == s.FD })
			}
			done = append(done, s)
			if s.Call != "read" && s.Call != "write" {
				break
			}
		}
	}
	call(unix.SYS_WRITE, log[0], []byte(lastLine))
	if err := json.NewEncoder(os.Stdout).Encode(done); err != nil {
		panic(err)
	}
	bufio.NewReader(os.Stdin).ReadString('\n') // the records were read
}

const lastLine = "<30>that was all"

func call(nr uintptr, fd int, b []byte) int {
	var p unsafe.Pointer
	if len(b) > 0 {
		p = unsafe.Pointer(&b[0])
	}
	n, _, errno := unix.RawSyscall(nr, uintptr(fd), uintptr(p), uintptr(len(b)))
	if errno != 0 {
		return -1
	}
	return int(n)
}

func (s step) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s(%d, %d) = %d %v", s.Call, s.FD, s.Ask, s.Ret, s.FDs))
}
