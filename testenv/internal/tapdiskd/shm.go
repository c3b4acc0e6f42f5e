//go:build linux

package tapdiskd

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/blkif"
)

// stats is struct stats of tapdisk-metrics-stats.h; ticks are microseconds.
type stats struct {
	version, _                                   uint32
	outOfOrder                                   uint64
	reads, readsDone, readSectors, readTicks     uint64
	writes, writesDone, writeSectors, writeTicks uint64
	errors, flags                                uint64
}

// blkback is struct blkback_stats.
type blkback struct {
	discards, flushes, outOfOrder uint64
	readRequests                  uint64
	readCount                     int64
	readSectors                   uint64
	readUs, readMaxUs             int64
	writeRequests                 uint64
	writeCount                    int64
	writeSectors                  uint64
	writeUs, writeMaxUs           int64
	flags                         uint64
}

// shm are the files that a tapdisk keeps its figures in.
type shm struct {
	vbd, vdi *stats
	blkback  *blkback
	ring     []byte // text after a checksum
	ringFD   int
	last     int64 // s, when ring was written
	text     []byte
	paths    []string // to be removed, the last first
	vdiPath  string   // there while the images are open
	vdiPage  []byte
}

func (m *shm) create(s *server) error {
	root := s.ShmRoot
	if root == "" {
		root = "/dev/shm"
	}
	own := filepath.Join(root, fmt.Sprintf("td3-%d", os.Getpid()))
	disk := filepath.Join(root, fmt.Sprintf("vbd3-%d-%d", s.Domid, s.Devid))
	if err := os.Mkdir(own, 0o700); err != nil {
		return err
	}
	m.paths = append(m.paths, own)
	m.vdiPath = filepath.Join(own, fmt.Sprintf("vdi-%d", s.Minor))
	if err := m.openVDI(); err != nil {
		return err
	}
	vbd, _, err := m.page(filepath.Join(own, fmt.Sprintf("vbd-%d-%d", s.Domid, s.Devid)))
	if err != nil {
		return err
	}
	if err := os.Mkdir(disk, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	m.paths = append(m.paths, disk)
	unfinished := filepath.Join(disk, "io_ring~")
	if m.ring, m.ringFD, err = m.page(unfinished); err != nil {
		return err
	}
	both, _, err := m.page(filepath.Join(disk, "statistics"))
	if err != nil {
		return err
	}
	m.vbd, m.blkback = (*stats)(unsafe.Pointer(&vbd[0])), (*blkback)(unsafe.Pointer(&both[0]))
	m.vbd.version = 1
	m.text = make([]byte, 0, blkif.Page)
	m.refresh(s)
	finished := filepath.Join(disk, "io_ring")
	if err := os.Rename(unfinished, finished); err != nil {
		return err
	}
	for i, p := range m.paths {
		if p == unfinished {
			m.paths[i] = finished
		}
	}
	return nil
}

// page makes a file of one, and maps it.
// openVDI makes the figures of the images anew.
func (m *shm) openVDI() error {
	b, fd, err := m.page(m.vdiPath)
	if err != nil {
		return err
	}
	m.vdiPage, m.vdi = b, (*stats)(unsafe.Pointer(&b[0]))
	m.vdi.version = 1
	return unix.Close(fd)
}

// closeVDI takes them away: nothing is served until they are there again.
func (m *shm) closeVDI() error {
	m.vdi = nil
	m.paths = slices.DeleteFunc(m.paths, func(p string) bool { return p == m.vdiPath })
	return errors.Join(os.Remove(m.vdiPath), unix.Munmap(m.vdiPage))
}

func (m *shm) page(path string) ([]byte, int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, -1, fmt.Errorf("%s: %w", path, err)
	}
	m.paths = append(m.paths, path)
	if err := unix.Ftruncate(fd, blkif.Page); err != nil {
		return nil, -1, fmt.Errorf("%s: %w", path, err)
	}
	b, err := unix.Mmap(fd, 0, blkif.Page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, -1, fmt.Errorf("%s: %w", path, err)
	}
	return b, fd, nil
}

func (m *shm) remove() {
	for i := len(m.paths) - 1; i >= 0; i-- {
		_ = os.Remove(m.paths[i])
	}
}

// count counts a request that has ended.
func (m *shm) count(write bool, us uint64, failed bool) {
	b, v := m.blkback, m.vbd
	if write {
		v.writesDone++
		v.writeTicks += us
		b.writeCount++
		b.writeUs += int64(us)
		b.writeMaxUs = max(b.writeMaxUs, int64(us))
	} else {
		v.readsDone++
		v.readTicks += us
		b.readCount++
		b.readUs += int64(us)
		b.readMaxUs = max(b.readMaxUs, int64(us))
	}
	if failed {
		v.errors++
	}
}

// refresh writes the text about the ring, not oftener than each 5 s.
func (m *shm) refresh(s *server) {
	now := nanotime() / second
	if m.last != 0 && now-m.last < 5 {
		return
	}
	m.last = now
	i := s.mem.Indexes()
	b := m.text[:0]
	line := func(word string, n uint32) {
		b = append(b, word...)
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	line("nr_ents ", uint32(s.mem.Slots()))
	line("\nreq prod ", i.ReqProd.Load())
	line(" cons ", s.ring.cons)
	line(" event ", i.ReqEvent.Load())
	line("\nrsp prod ", i.RspProd.Load())
	line(" pvt ", s.ring.rsp)
	line(" event ", i.RspEvent.Load())
	b = append(b, '\n')
	// A tapdisk writes the text first, on a file system that keeps what is behind the
	// end of a file when that grows.
	call(unix.SYS_FTRUNCATE, uintptr(m.ringFD), uintptr(8+len(b)))
	copy(m.ring[8:], b)
	*(*uint64)(unsafe.Pointer(&m.ring[0])) = uint64(crc32.ChecksumIEEE(b))
}
