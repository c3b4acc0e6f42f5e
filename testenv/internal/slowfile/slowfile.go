//go:build linux

// Package slowfile is a file that is read and synced, and takes an ioctl, when its
// owner wants it, not earlier: a FUSE file system that consists of one file.
//
// Its server has to be another process than those that use the file. One that
// waits for itself may wait for ever, and the Go runtime does.
package slowfile

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/internal/sys"
)

// Server is where a simulated dom0 has the program that runs Serve, on descriptor
// 3 and the standard input.
const Server = "/usr/libexec/slowfile"

// Mount has the file appear in place of the regular file at path, in the calling
// thread's mount namespace. Serve is to be run on the descriptor that it returns,
// which is closed on exec. Users of the file block until it is, and get an error
// when the last copy of the descriptor has been closed.
func Mount(path string) (dev int, err error) {
	dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", dev, mode)
	if err := unix.Mount("slowfile", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(dev)
		return -1, fmt.Errorf("mount fuse on %s: %w", path, err)
	}
	return dev, nil
}

// Unmount takes the file away. Who has it open keeps it, and Serve ends when it is
// closed.
func Unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// mode and content are those of the file.
const (
	mode    = unix.S_IFREG | 0o600
	content = "x"
)

// FUSE as of include/uapi/linux/fuse.h, in the version of Linux 4.19, which newer
// kernels speak too.
const (
	major, minor = 7, 27

	opForget    = 2
	opGetattr   = 3
	opOpen      = 14
	opRead      = 15
	opWrite     = 16
	opRelease   = 18
	opFsync     = 20
	opFlush     = 25
	opInit      = 26
	opInterrupt = 36
	opIoctl     = 39

	asyncRead = 1 << 0 // FUSE_ASYNC_READ
	bigWrites = 1 << 5 // FUSE_BIG_WRITES
	directIO  = 1 << 0 // FOPEN_DIRECT_IO

	inHeader  = 40   // struct fuse_in_header
	maxWrite  = 4096 // the least that there is
	minBuffer = 8192 // FUSE_MIN_READ_BUFFER
)

// initOut is struct fuse_init_out.
type initOut struct {
	Major, Minor, MaxReadahead, Flags uint32
	MaxBackground, Congestion         uint16
	MaxWrite, TimeGran                uint32
	_                                 [9]uint32
}

// attrOut is struct fuse_attr_out.
type attrOut struct {
	Valid        uint64 // s
	_            [2]uint32
	Ino          uint64
	Size, Blocks uint64
	_            [3]uint64 // times
	_            [3]uint32
	Mode, Links  uint32
	_            [5]uint32
}

// openOut is struct fuse_open_out.
type openOut struct {
	Handle uint64
	Flags  uint32
	_      uint32
}

// ioctlOut is struct fuse_ioctl_out.
type ioctlOut struct {
	Result int32
	_      [3]uint32
}

// outHeader is struct fuse_out_header.
type outHeader struct {
	Len    uint32
	Error  int32
	Unique uint64
}

// Serve answers the kernel on dev until the file system is gone. Reads of the
// file, fsync and ioctl are answered when gate has come to its end, that is, when
// all copies of its other end are closed; everything else at once.
func Serve(dev, gate int) error {
	in := make([]byte, minBuffer)
	var held []reply
	for {
		fds := []unix.PollFd{{Fd: int32(dev), Events: unix.POLLIN}, {Fd: int32(gate), Events: unix.POLLIN}} // a negative one is not looked at
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[1].Revents != 0 {
			if n, err := unix.Read(gate, in); err != nil || n > 0 {
				return fmt.Errorf("gate: %d bytes instead of its end: %v", n, err)
			}
			gate = -1
			for _, r := range held {
				if err := r.send(dev); err != nil {
					return err
				}
			}
			held = nil
		}
		if fds[0].Revents == 0 {
			continue
		}
		op, unique, body, err := receive(dev, in)
		switch {
		case err == errGone:
			return nil
		case err == errNone:
			continue
		case err != nil:
			return err
		}
		r := reply{unique, answer(op, body)}
		switch {
		case op == opForget || op == opInterrupt: // they have no reply
		case gate >= 0 && (op == opRead || op == opFsync || op == opIoctl):
			held = append(held, r)
		default:
			if err := r.send(dev); err != nil {
				return err
			}
		}
	}
}

var (
	errGone = errors.New("the file system is gone")
	errNone = errors.New("no request after all")
)

// receive reads a request from the kernel.
func receive(dev int, in []byte) (op uint32, unique uint64, body []byte, err error) {
	n, err := unix.Read(dev, in)
	switch {
	case err == unix.ENODEV || err == unix.ECONNABORTED:
		return 0, 0, nil, errGone // unmounted, the latter in the middle of a request
	case err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT:
		return 0, 0, nil, errNone // ENOENT: its caller was interrupted before we read it
	case err != nil:
		return 0, 0, nil, fmt.Errorf("/dev/fuse: %w", err)
	case n < inHeader:
		return 0, 0, nil, fmt.Errorf("/dev/fuse: a request of %d bytes", n)
	}
	return binary.NativeEndian.Uint32(in[4:]), binary.NativeEndian.Uint64(in[8:]), in[inHeader:n], nil
}

// reply is one to the kernel.
type reply struct {
	unique uint64 // number of the request
	what   any    // nil for nothing, an errno, or a struct
}

// answer is what a request is replied.
func answer(op uint32, body []byte) any {
	switch op {
	case opInit:
		if len(body) < 16 {
			return unix.EPROTO
		}
		// As of a file on a disk: the kernel reads ahead in the background, and who
		// wants the page waits for it where no signal but a deadly one ends it.
		return initOut{Major: major, Minor: minor, MaxReadahead: binary.NativeEndian.Uint32(body[8:]), Flags: asyncRead, MaxWrite: maxWrite, TimeGran: 1}
	case opGetattr:
		return attrOut{Valid: 3600, Ino: 1, Size: uint64(len(content)), Mode: mode, Links: 1}
	case opOpen:
		return openOut{}
	case opRead:
		if len(body) < 16 {
			return unix.EPROTO
		}
		return []byte(content)[min(binary.NativeEndian.Uint64(body[8:]), uint64(len(content))):]
	case opIoctl: // whichever it is
		return ioctlOut{}
	case opFsync, opFlush, opRelease:
		return nil
	}
	return unix.ENOSYS
}

func (r reply) send(dev int) error {
	h := outHeader{Unique: r.unique}
	var body []byte
	switch w := r.what.(type) {
	case nil:
	case unix.Errno:
		h.Error = -int32(w)
	default:
		var err error
		if body, err = binary.Append(nil, binary.NativeEndian, w); err != nil {
			return fmt.Errorf("reply: %w", err)
		}
	}
	h.Len = uint32(binary.Size(h) + len(body))
	out, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	if err := sys.Write(dev, append(out, body...)); err != nil && err != unix.ENOENT && err != unix.ENODEV { // nobody waits for it any more
		return fmt.Errorf("reply: %w", err)
	}
	return nil
}
