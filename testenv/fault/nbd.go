//go:build linux

package fault

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The generic netlink family nbd, as of include/uapi/linux/nbd-netlink.h.
const (
	nbdConnect    = 1
	nbdDisconnect = 2

	nbdAttrIndex       = 1
	nbdAttrSize        = 2
	nbdAttrBlockSize   = 3
	nbdAttrTimeout     = 4
	nbdAttrServerFlags = 5
	nbdAttrSockets     = 7
	nbdSockItem        = 1
	nbdSockFd          = 1
)

// NBD, as of include/uapi/linux/nbd.h.
const (
	nbdRequestMagic = 0x25609513
	nbdReplyMagic   = 0x67446698

	nbdHasFlags  = 1 << 0
	nbdSendFlush = 1 << 2

	nbdRead  = 0
	nbdWrite = 1
	nbdDisc  = 2
	nbdFlush = 3

	nbdMaxRequest = 32 * mebi // the most that any client asks for
)

// nbdTimeout is when the kernel gives a request up.
const nbdTimeout = 3 * maxDelay

// openNBD makes a network block device, the server of which is at the other end of
// a pair of sockets.
func openNBD(ctx context.Context, o Options, d *device) error {
	family, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		return missingModule("nbd", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair: %w", err)
	}
	kernel, server := pair[0], os.NewFile(uintptr(pair[1]), "nbd")
	defer unix.Close(kernel) // the driver has its own
	d.set, err = d.serve(serverNBD, o.Size, server)
	if err := errors.Join(err, server.Close()); err != nil {
		return err
	}
	sockets := nl.NewRtAttr(nbdAttrSockets|unix.NLA_F_NESTED, nil)
	sockets.AddRtAttr(nbdSockItem|unix.NLA_F_NESTED, nil).AddRtAttr(nbdSockFd, nl.Uint32Attr(uint32(kernel)))
	answer, err := nbdCommand(family, nbdConnect,
		nl.NewRtAttr(nbdAttrSize, nl.Uint64Attr(uint64(o.Size))),
		nl.NewRtAttr(nbdAttrBlockSize, nl.Uint64Attr(512)),
		nl.NewRtAttr(nbdAttrTimeout, nl.Uint64Attr(uint64(nbdTimeout/time.Second))),
		nl.NewRtAttr(nbdAttrServerFlags, nl.Uint64Attr(nbdHasFlags|nbdSendFlush)),
		sockets)
	if err != nil {
		return fmt.Errorf("nbd: connect: %w", err)
	}
	index, err := nbdIndex(answer)
	if err != nil {
		return err
	}
	d.block = fmt.Sprintf("nbd%d", index)
	d.path = "/dev/" + d.block
	d.onClose(func() error {
		if _, err := nbdCommand(family, nbdDisconnect, nl.NewRtAttr(nbdAttrIndex, nl.Uint32Attr(index))); err != nil {
			return fmt.Errorf("nbd: disconnect %s: %w", d.block, err)
		}
		return nil
	})
	return until(ctx, d.path, func() bool {
		_, err := os.Stat(d.path)
		return err == nil
	})
}

func nbdCommand(family *netlink.GenlFamily, command uint8, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: 1})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_GENERIC, 0)
}

// nbdIndex finds the number of the device in the answer to nbdConnect.
func nbdIndex(answer [][]byte) (uint32, error) {
	for _, m := range answer {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("nbd: answer: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == nbdAttrIndex && len(a.Value) >= 4 {
				return binary.NativeEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("nbd: the kernel does not say which device it took")
}

// nbdRequest is struct nbd_request.
type nbdRequest struct {
	Magic  uint32
	Flags  uint16
	Type   uint16
	Cookie uint64
	From   uint64
	Len    uint32
}

// nbdReply is struct nbd_reply.
type nbdReply struct {
	Magic  uint32
	Error  uint32
	Cookie uint64
}

// serveNBD answers requests until the other end is gone, each after what delay
// returns when it comes, whatever others there are.
func serveNBD(conn io.ReadWriter, disk *image, delay func() time.Duration) {
	var answering sync.WaitGroup
	defer answering.Wait()
	var sending sync.Mutex
	in := bufio.NewReader(conn)
	for {
		var r nbdRequest
		if err := binary.Read(in, binary.BigEndian, &r); err != nil || r.Magic != nbdRequestMagic {
			return
		}
		if r.Type == nbdDisc {
			return
		}
		var data []byte
		if r.Len > nbdMaxRequest {
			return
		}
		if r.Type == nbdWrite {
			data = make([]byte, r.Len)
			if _, err := io.ReadFull(in, data); err != nil {
				return
			}
		}
		wait := delay()
		answering.Go(func() {
			time.Sleep(wait)
			out := answerNBD(r, data, disk)
			sending.Lock()
			defer sending.Unlock()
			conn.Write(out) // fails when nobody waits for it any more
		})
	}
}

func answerNBD(r nbdRequest, data []byte, disk *image) []byte {
	reply := nbdReply{Magic: nbdReplyMagic, Cookie: r.Cookie}
	var body []byte
	var err error
	switch r.Type {
	case nbdRead:
		body = make([]byte, r.Len)
		_, err = disk.ReadAt(body, int64(r.From))
	case nbdWrite:
		_, err = disk.WriteAt(data, int64(r.From))
	case nbdFlush:
	default:
		err = unix.EINVAL
	}
	if err != nil {
		reply.Error, body = uint32(unix.EINVAL), nil
	}
	out, _ := binary.Append(nil, binary.BigEndian, reply) // of fixed size: it cannot fail
	return append(out, body...)
}
