//go:build linux

package stat

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TCP are the connections to a server. Sums are of those that were seen, since each
// was seen first.
type TCP struct {
	Connections int // that there are now
	RTT         time.Duration
	RTTVar      time.Duration
	MinRTT      time.Duration
	Segments    uint64 // sent
	Retrans     uint64 // of those, sent again
	Unacked     uint64 // segments on their way now
	Lost        uint64 // of those, taken for lost
	Opened      uint64 // connections that began while it was looked
}

// connection is what is taken from tcp_info of one.
type connection struct {
	to       netip.AddrPort
	cookie   uint64
	rtt      time.Duration
	rttvar   time.Duration
	min      time.Duration
	segments uint32
	retrans  uint32
	unacked  uint32
	lost     uint32
}

// Meter adds up what connections to some servers did. It is for one goroutine.
type Meter struct {
	list func() ([]connection, error) // of this network name space
	seen map[uint64]connection        // by cookie
	sums map[netip.AddrPort]*TCP
	read bool

	LeftOut int // connections in the last Read, for being too many
}

// Bounds of a Meter.
const (
	maxServers     = 1024
	maxConnections = 8192
)

// NewMeter returns one that has seen nothing.
func NewMeter() *Meter {
	return &Meter{list: connections, seen: map[uint64]connection{}, sums: map[netip.AddrPort]*TCP{}}
}

// Read looks at the connections to servers. The smoothed times are the means of those
// of the connections that there are.
func (m *Meter) Read(servers map[netip.AddrPort]bool) (map[netip.AddrPort]TCP, error) {
	m.LeftOut = 0
	if len(servers) == 0 {
		return nil, nil
	}
	all, err := m.list()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(m.sums, func(a netip.AddrPort, _ *TCP) bool { return !servers[a] })
	for _, t := range m.sums {
		t.Connections, t.RTT, t.RTTVar, t.MinRTT, t.Unacked, t.Lost = 0, 0, 0, 0, 0, 0
	}
	seen := map[uint64]connection{}
	for _, c := range all {
		if !servers[c.to] {
			continue
		}
		if len(seen) >= maxConnections {
			m.LeftOut++
			continue
		}
		t := m.sums[c.to]
		fresh := t == nil
		if fresh {
			if len(m.sums) >= maxServers {
				m.LeftOut++
				continue
			}
			t = &TCP{}
			m.sums[c.to] = t
		}
		before, known := m.seen[c.cookie]
		switch {
		case known:
			t.Segments += uint64(c.segments - before.segments) // they wrap
			t.Retrans += uint64(c.retrans - before.retrans)
		case m.read && !fresh: // all that it has done was since the last look
			t.Segments += uint64(c.segments)
			t.Retrans += uint64(c.retrans)
			t.Opened++
		}
		seen[c.cookie] = c
		t.Connections++
		t.RTT += c.rtt
		t.RTTVar += c.rttvar
		if t.MinRTT == 0 || c.min > 0 && c.min < t.MinRTT {
			t.MinRTT = c.min
		}
		t.Unacked += uint64(c.unacked)
		t.Lost += uint64(c.lost)
	}
	m.seen, m.read = seen, true
	out := make(map[netip.AddrPort]TCP, len(m.sums))
	for a, t := range m.sums {
		v := *t
		if v.Connections > 0 {
			v.RTT /= time.Duration(v.Connections)
			v.RTTVar /= time.Duration(v.Connections)
		}
		out[a] = v
	}
	return out, nil
}

// connections returns those that are established.
func connections() ([]connection, error) {
	var out []connection
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.SocketDiagTCPInfo(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // then it holds most
			return nil, fmt.Errorf("tcp_info: %w", err)
		}
		for _, s := range all {
			if c, ok := connectionOf(s); ok {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

func connectionOf(s *netlink.InetDiagTCPInfoResp) (c connection, ok bool) {
	if s == nil || s.TCPInfo == nil || s.InetDiagMsg == nil || s.TCPInfo.State != netlink.TCP_ESTABLISHED {
		return c, false
	}
	id, info := &s.InetDiagMsg.ID, s.TCPInfo
	addr, ok := netip.AddrFromSlice(id.Destination)
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	min := us(info.Min_rtt)
	if info.Min_rtt == ^uint32(0) { // none measured
		min = 0
	}
	return connection{
		to: netip.AddrPortFrom(addr.Unmap(), id.DestinationPort), cookie: uint64(id.Cookie[0]) | uint64(id.Cookie[1])<<32,
		rtt: us(info.Rtt), rttvar: us(info.Rttvar), min: min,
		segments: info.Segs_out, retrans: info.Total_retrans, unacked: info.Unacked, lost: info.Lost,
	}, ok
}
