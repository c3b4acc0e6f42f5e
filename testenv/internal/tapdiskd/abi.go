//go:build linux

package tapdiskd

// ioctls of /dev/xen/gntdev and /dev/xen/evtchn.
const (
	grantCopy    = 0x00104708 // IOCTL_GNTDEV_GRANT_COPY
	evtchnNotify = 0x00044504 // IOCTL_EVTCHN_NOTIFY
)

// Flags of a copySegment: which side is the guest's.
const (
	sourceGref = 1 << 0
	destGref   = 1 << 1
)

// copyArg is struct ioctl_gntdev_grant_copy.
type copyArg struct {
	count    uint32
	_        uint32
	segments uintptr
}

// copySegment is struct gntdev_grant_copy_segment. Its sides are an address or a page
// that the guest has granted: foreign makes one.
type copySegment struct {
	source, dest uint64
	len, flags   uint16
	_            int16 // status
	_            uint16
}

// foreign is the side that is a grant reference, an offset in its page and a domain.
func foreign(ref uint32, offset, domid uint16) uint64 {
	return uint64(ref) | uint64(offset)<<32 | uint64(domid)<<48
}

// Operations of an iocb.
const (
	cmdPread   = 0
	cmdPwrite  = 1
	cmdPreadv  = 7
	cmdPwritev = 8
)

const flagResfd = 1 // IOCB_FLAG_RESFD

// iocb is struct iocb.
type iocb struct {
	data   uintptr
	_      uint32 // key
	_      uint32 // rwFlags
	opcode uint16
	_      int16 // reqprio
	fildes uint32
	buf    uintptr
	nbytes uint64
	offset int64
	_      uint64 // reserved
	flags  uint32
	resfd  uint32
}

type iovec struct {
	base uintptr
	len  uint64
}

// ioEvent is struct io_event.
type ioEvent struct {
	_   uint64 // data
	obj uintptr
	res int64
	_   int64 // res2
}

// aioRing is struct aio_ring, which the kernel maps at the address of an io_context.
type aioRing struct {
	_, nr, head, tail           uint32 // _: id
	magic, _, incompat, headLen uint32 // _: compat_features
}

const aioMagic = 0xa10a10a1

// fdSet is the kernel's fd_set.
type fdSet [1024 / 64]uint64

func (s *fdSet) set(fd int)      { s[fd/64] |= 1 << (fd % 64) }
func (s *fdSet) has(fd int) bool { return fd >= 0 && s[fd/64]&(1<<(fd%64)) != 0 }
