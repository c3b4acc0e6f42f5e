//go:build linux

package xenopsd

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// hypervisor knows the domains, which outlive xenopsd. Calls to it are no system
// calls that a real xenopsd would not make: it is a file in memory.
type hypervisor struct {
	mu    sync.Mutex
	mem   []byte // which slot is the newest, then two: the length of JSON, and that
	state hypervisorState
}

type hypervisorState struct {
	Next    int // domain id
	Domains map[string]domain
}

type domain struct {
	ID    int
	Power string // "": there is none any more
}

// slot is the room for a state: some 10,000 domains.
const slot = 1 << 20

// newHypervisor finds the domains that there are. dir is the dom0's.
func newHypervisor(dir string) (*hypervisor, error) {
	fd, err := unix.Open(filepath.Join(dir, "hypervisor"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hypervisor: %w", err)
	}
	defer unix.Close(fd)
	const size = 8 + 2*slot
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, fmt.Errorf("hypervisor: %w", err)
	}
	h := &hypervisor{state: hypervisorState{Next: 1, Domains: map[string]domain{}}}
	if h.mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("hypervisor: %w", err)
	}
	s := h.slot(h.mem[0])
	if n := binary.NativeEndian.Uint32(s); n > 0 {
		if err := json.Unmarshal(s[4:4+n], &h.state); err != nil {
			return nil, fmt.Errorf("hypervisor: %w", err)
		}
	}
	return h, nil
}

func (h *hypervisor) slot(n byte) []byte { return h.mem[8+int(n)*slot:][:slot] }

// save writes the slot that is not in use: the process may be killed at any time.
func (h *hypervisor) save() {
	b, err := json.Marshal(h.state)
	if err != nil || len(b) > slot-4 {
		fmt.Fprintln(os.Stderr, "hypervisor: too many domains to keep")
		return
	}
	next := 1 - h.mem[0]
	s := h.slot(next)
	binary.NativeEndian.PutUint32(s, uint32(len(b)))
	copy(s[4:], b)
	h.mem[0] = next
}

func (h *hypervisor) create(vm string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := h.state.Next
	h.state.Next++
	h.state.Domains[vm] = domain{ID: id}
	h.save()
	return id
}

// domid is that of the VM's domain, or of the last one that it had.
func (h *hypervisor) domid(vm string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state.Domains[vm].ID
}

func (h *hypervisor) set(vm, power string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Domains[vm] = domain{ID: h.state.Domains[vm].ID, Power: power}
	h.save()
}

func (h *hypervisor) power(vm string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.state.Domains[vm].Power; p != "" {
		return p
	}
	return "Halted"
}
