//go:build linux

package slowfile

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxIO is the most that a request of a Disk reads or writes: what kernels do
// without being asked for more, FUSE_DEFAULT_MAX_PAGES_PER_REQ.
const maxIO = 32 * 4096

// MountDisk makes a file system that is nothing but a file, in no directory. The
// file is to be opened by the /proc/self/fd of mount, and ServeLate to be run on dev.
// Both descriptors are closed on exec.
func MountDisk() (mount, dev int, err error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	for _, o := range [][2]string{{"fd", fmt.Sprint(dev)}, {"rootmode", fmt.Sprintf("%o", mode)}, {"user_id", "0"}, {"group_id", "0"}} {
		if err == nil {
			err = unix.FsconfigSetString(fs, o[0], o[1])
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err == nil {
		mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	}
	if err != nil {
		unix.Close(dev)
		return -1, -1, fmt.Errorf("mount fuse: %w", err)
	}
	return mount, dev, nil
}

// ServeLate answers the kernel on dev until the file system is gone. The file is
// size bytes of memory, and knows every ioctl. Its reads, writes, fsyncs and ioctls
// take longer by what delay returns when they come.
func ServeLate(dev int, size int64, delay func() time.Duration) error {
	type heldReply struct {
		due time.Time
		reply
	}
	d := disk(make([]byte, size))
	in := make([]byte, inHeader+writeIn+maxIO)
	var held []heldReply // the next one first
	for {
		timeout := -1
		if len(held) > 0 {
			timeout = int(max(0, (time.Until(held[0].due)+time.Millisecond-1)/time.Millisecond)) // not earlier
		}
		fds := []unix.PollFd{{Fd: int32(dev), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, timeout); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		now := time.Now()
		for len(held) > 0 && !held[0].due.After(now) {
			if err := held[0].send(dev); err != nil {
				return err
			}
			held = held[1:]
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
		r := reply{unique, d.answer(op, body)}
		switch op {
		case opForget, opInterrupt: // they have no reply
		case opRead, opWrite, opFsync, opIoctl:
			due := time.Now().Add(delay())
			at := slices.IndexFunc(held, func(h heldReply) bool { return h.due.After(due) })
			if at < 0 {
				at = len(held)
			}
			held = slices.Insert(held, at, heldReply{due, r})
		default:
			if err := r.send(dev); err != nil {
				return err
			}
		}
	}
}

const (
	readIn  = 40 // struct fuse_read_in
	writeIn = 40 // struct fuse_write_in
)

// writeOut is struct fuse_write_out.
type writeOut struct{ Size, _ uint32 }

// disk is what the file holds.
type disk []byte

// answer is what a request is replied.
func (d disk) answer(op uint32, body []byte) any {
	switch op {
	case opInit:
		if len(body) < 16 {
			return unix.EPROTO
		}
		return initOut{Major: major, Minor: minor, MaxReadahead: binary.NativeEndian.Uint32(body[8:]),
			Flags: asyncRead | bigWrites, MaxWrite: maxIO, TimeGran: 1}
	case opGetattr:
		return attrOut{Valid: 3600, Ino: 1, Size: uint64(len(d)), Blocks: uint64(len(d)) / 512, Mode: mode, Links: 1}
	case opOpen:
		return openOut{Flags: directIO} // no page cache, which would answer in our place
	case opRead:
		if len(body) < readIn {
			return unix.EPROTO
		}
		at, n := binary.NativeEndian.Uint64(body[8:]), binary.NativeEndian.Uint32(body[16:])
		rest := d[min(at, uint64(len(d))):]
		return slices.Clone([]byte(rest[:min(uint64(n), uint64(len(rest)))])) // it may be held while it is written
	case opWrite:
		if len(body) < writeIn {
			return unix.EPROTO
		}
		at, data := binary.NativeEndian.Uint64(body[8:]), body[writeIn:]
		if at > uint64(len(d)) || uint64(len(data)) > uint64(len(d))-at {
			return unix.ENOSPC
		}
		return writeOut{Size: uint32(copy(d[at:], data))}
	case opIoctl:
		return ioctlOut{}
	case opFsync, opFlush, opRelease:
		return nil
	}
	return unix.ENOSYS
}
