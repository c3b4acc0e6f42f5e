//go:build linux

package target

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// unknown is the tgid of events that were lost.
const unknown = 0

// Connector tells whether starts of programs are noticed at once here: nil, or
// why they are noticed by scans only.
func Connector() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return execs(ctx, cancel, func(uint32) {})
}

// execs calls ready, then f with the tgid of each process that executes a
// program, or unknown, until ctx ends or the connector fails: it needs
// CAP_NET_ADMIN in the first network and pid name spaces. A socket filter lets nothing but exec events through,
// so that a host that makes many threads costs nothing.
func execs(ctx context.Context, ready func(), f func(tgid uint32)) error {
	s, err := nl.Subscribe(unix.NETLINK_CONNECTOR, netlink.CN_IDX_PROC)
	if err != nil {
		return fmt.Errorf("proc connector: %w", err)
	}
	defer s.Close()
	if err := unix.SetsockoptSockFprog(s.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(execFilter)), Filter: &execFilter[0],
	}); err != nil {
		return fmt.Errorf("proc connector: filter: %w", err)
	}
	if err := s.Send(procRequest(netlink.PROC_CN_MCAST_LISTEN)); err != nil {
		return fmt.Errorf("proc connector: %w", err)
	}
	// Kernels before 6.6 do not notice that a listener has gone, and go on making
	// events for nobody.
	defer func() { _ = s.Send(procRequest(procIgnore)) }()
	timeout := unix.Timeval{Usec: 200_000} // how late the end of ctx is seen
	if err := s.SetReceiveTimeout(&timeout); err != nil {
		return fmt.Errorf("proc connector: %w", err)
	}
	ready()
	for ctx.Err() == nil {
		msgs, from, err := s.Receive()
		switch err {
		case nil:
		case unix.EAGAIN, unix.EINTR:
			continue
		case unix.ENOBUFS:
			f(unknown)
			continue
		default:
			return fmt.Errorf("proc connector: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for i := range msgs {
			if tgid, ok := execOf(&msgs[i]); ok {
				f(tgid)
			}
		}
	}
	return nil
}

// procIgnore is PROC_CN_MCAST_IGNORE of linux/cn_proc.h.
const procIgnore = 2

// procRequest is a message to the proc connector.
func procRequest(op uint32) *nl.NetlinkRequest {
	var req nl.NetlinkRequest
	req.Type = unix.NLMSG_DONE
	req.Len = uint32(unix.SizeofNlMsghdr)
	req.AddData(nl.NewCnMsg(netlink.CN_IDX_PROC, netlink.CN_VAL_PROC, op))
	return &req
}

// Lengths of struct cn_msg and of the head of struct proc_event.
const (
	cnMsgLen     = 20
	eventHeadLen = 16
)

// execOf returns whose exec a message tells of.
func execOf(m *syscall.NetlinkMessage) (uint32, bool) {
	if len(m.Data) < cnMsgLen+eventHeadLen+8 || binary.LittleEndian.Uint32(m.Data[cnMsgLen:]) != netlink.PROC_EVENT_EXEC {
		return 0, false
	}
	return binary.LittleEndian.Uint32(m.Data[cnMsgLen+eventHeadLen+4:]), true
}

// execFilter passes messages whose proc_event.what is PROC_EVENT_EXEC. Classic
// BPF loads words in network order.
var execFilter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: unix.SizeofNlMsghdr + cnMsgLen},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: netlink.PROC_EVENT_EXEC << 24, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}
