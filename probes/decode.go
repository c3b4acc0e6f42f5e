//go:build linux

package probes

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/intern"
)

// Sizes and offsets of the wire contract; decode_test.go compares them with
// the structs of package bpf.
const (
	sizeHdr   = 32
	sizeData  = 88
	sizeLog   = 40
	sizeOpen  = 80
	sizeClose = 64
	sizeFork  = 40
	sizeExec  = sizeHdr + commLen + (1+bpf.ExecArgs)*bpf.ExecArgLen
	sizeExit  = 48
	sizeTime  = 48 + 8*int(event.NumSpent) + 24

	sizeRequest = 48 + 8*int(event.NumLayers) + 16

	commLen = 16
)

// sizeOf is the fixed part of a record of each kind, 0 for kinds that are none.
var sizeOf = [...]int{
	event.KindData:  sizeData,
	event.KindLog:   sizeLog,
	event.KindOpen:  sizeOpen,
	event.KindClose: sizeClose,
	event.KindFork:  sizeFork,
	event.KindExec:  sizeExec,
	event.KindExit:  sizeExit,
	event.KindTime:  sizeTime,

	event.KindRequest: sizeRequest,
}

const knownFlags = event.FlagCut | event.FlagMore | event.FlagNoEnter | event.FlagEOF |
	event.FlagThread | event.FlagLeader | event.FlagNoCode | event.FlagNoCPU

// Decoder turns records into events. It belongs to one goroutine.
type Decoder struct {
	names *intern.Interner // made with the first name
}

// maxNames bounds the interned strings: programs and operations of a dom0 are
// some hundred.
const maxNames = 4096

func (d *Decoder) name(b []byte) string {
	if d.names == nil {
		d.names = intern.New(maxNames)
	}
	return d.names.String(b)
}

// Decode sets all fields of e from one record; Head and Tail are parts of raw.
// A record that breaks the wire contract gives an error that wraps
// event.ErrRecord, and leaves e undefined. Secrets are still in Head and Tail,
// see package redact; the arguments of an execve do not get into e.
//
// It allocates only for names of programs and operations seen for the first
// time.
func (d *Decoder) Decode(e *event.Event, raw []byte) error {
	if len(raw) < sizeHdr {
		return fmt.Errorf("%w: %d bytes", event.ErrRecord, len(raw))
	}
	le := binary.LittleEndian
	kind, size := le.Uint16(raw[24:]), int(le.Uint32(raw[16:]))
	if raw[31] != bpf.WireVersion {
		return fmt.Errorf("%w: version %d", event.ErrRecord, raw[31])
	}
	if int(kind) >= len(sizeOf) || sizeOf[kind] == 0 {
		return fmt.Errorf("%w: kind %d", event.ErrRecord, kind)
	}
	fixed := sizeOf[kind]
	if size < fixed || size > len(raw) {
		return fmt.Errorf("%w: kind %d, size %d in %d bytes", event.ErrRecord, kind, size, len(raw))
	}
	if c := event.Component(raw[30]); c != event.NoComponent && !c.Exists() {
		return fmt.Errorf("%w: component %d", event.ErrRecord, raw[30])
	}
	raw = raw[:size]
	*e = event.Event{
		Kind:      event.Kind(kind),
		Component: event.Component(raw[30]),
		Flags:     event.Flags(le.Uint16(raw[26:])) & knownFlags,
		CPU:       le.Uint16(raw[28:]),
		TGID:      le.Uint32(raw[8:]),
		TID:       le.Uint32(raw[12:]),
		Time:      event.Time(le.Uint64(raw)),
	}
	switch e.Kind {
	case event.KindData:
		return d.data(e, raw)
	case event.KindLog:
		return d.log(e, raw)
	case event.KindOpen:
		return d.open(e, raw)
	case event.KindClose:
		e.Conn = event.Conn{TGID: e.TGID, FD: int32(le.Uint32(raw[56:])), Born: event.Time(le.Uint64(raw[32:]))}
	case event.KindFork:
		e.ChildTGID, e.ChildTID = le.Uint32(raw[32:]), le.Uint32(raw[36:])
	case event.KindExec:
		x := execOf(raw)
		e.Program = d.name(x.program())
		e.Operation = d.name(x.operation())
		if sr, vdi := x.objects(); sr != nil {
			e.SR, e.VDI = d.name(sr), d.name(vdi)
		}
	case event.KindExit:
		e.CPUTime = int64(le.Uint64(raw[32:]))
		e.Code = int32(le.Uint32(raw[40:]))
		if e.CPUTime < 0 {
			return fmt.Errorf("%w: CPU time %d", event.ErrRecord, e.CPUTime)
		}
	case event.KindTime:
		return d.time(e, raw)
	case event.KindRequest:
		return d.request(e, raw)
	}
	return nil
}

func (d *Decoder) request(e *event.Event, raw []byte) error {
	le := binary.LittleEndian
	const after = 48 + 8*int(event.NumLayers)
	e.First, e.Last = event.Time(le.Uint64(raw[32:])), event.Time(le.Uint64(raw[40:]))
	r := &e.Request
	for i := range r.Layers {
		r.Layers[i] = int64(le.Uint64(raw[48+8*i:]))
	}
	r.Offset = le.Uint64(raw[after:])
	r.Bytes, r.IOs = le.Uint32(raw[after+8:]), le.Uint16(raw[after+12:])
	flags := le.Uint16(raw[after+14:])
	r.Write, r.Slow, r.Merged = flags&bpf.RequestWrite != 0, flags&bpf.RequestSlow != 0, flags&bpf.RequestMerged != 0
	r.Failed, r.Unsplit = flags&bpf.RequestFailed != 0, flags&bpf.RequestUnsplit != 0
	if !r.Layers.Whole() || e.First < 0 || e.Last-e.First != event.Time(r.Layers[event.LayerTotal]) {
		return fmt.Errorf("%w: request from %d to %d with layers %d", event.ErrRecord, e.First, e.Last, r.Layers)
	}
	return nil
}

func (d *Decoder) time(e *event.Event, raw []byte) error {
	le := binary.LittleEndian
	const after = 48 + 8*int(event.NumSpent)
	e.First, e.Last = event.Time(le.Uint64(raw[32:])), event.Time(le.Uint64(raw[40:]))
	left := int64(e.Last - e.First)
	for i := range e.Spent {
		e.Spent[i] = int64(le.Uint64(raw[48+8*i:]))
		if e.Spent[i] < 0 || e.Spent[i] > left {
			return fmt.Errorf("%w: more time spent than the %d ns of the stretch", event.ErrRecord, e.Last-e.First)
		}
		left -= e.Spent[i]
	}
	e.Runnable = event.Time(le.Uint64(raw[after:]))
	e.Detail = le.Uint64(raw[after+8:])
	e.Syscall = int32(le.Uint32(raw[after+16:]))
	e.Wait = event.Spent(raw[after+20])
	if e.First < 0 || e.Wait >= event.NumSpent || e.Wait.Wait() && (e.Runnable < e.First || e.Runnable > e.Last) {
		return fmt.Errorf("%w: wait %d from %d to %d, runnable at %d", event.ErrRecord, e.Wait, e.First, e.Last, e.Runnable)
	}
	return nil
}

func (d *Decoder) data(e *event.Event, raw []byte) error {
	le := binary.LittleEndian
	e.Conn = event.Conn{TGID: e.TGID, FD: int32(le.Uint32(raw[72:])), Born: event.Time(le.Uint64(raw[32:]))}
	e.Ino = le.Uint64(raw[40:])
	e.First, e.Last = event.Time(le.Uint64(raw[48:])), event.Time(le.Uint64(raw[56:]))
	e.Bytes = le.Uint64(raw[64:])
	e.Calls = le.Uint32(raw[76:])
	e.Dir = event.Dir(raw[84])
	head, tail := int(le.Uint16(raw[80:])), int(le.Uint16(raw[82:]))
	if e.Dir != event.In && e.Dir != event.Out {
		return fmt.Errorf("%w: direction %d", event.ErrRecord, e.Dir)
	}
	if sizeData+head+tail > len(raw) || uint64(head+tail) > e.Bytes {
		return fmt.Errorf("%w: %d and %d bytes of %d in %d", event.ErrRecord, head, tail, e.Bytes, len(raw))
	}
	e.Head = raw[sizeData : sizeData+head : sizeData+head]
	if tail > 0 {
		e.Tail = raw[sizeData+head : sizeData+head+tail]
	}
	return nil
}

func (d *Decoder) log(e *event.Event, raw []byte) error {
	le := binary.LittleEndian
	e.Bytes = uint64(le.Uint32(raw[32:]))
	head := int(le.Uint16(raw[36:]))
	if sizeLog+head > len(raw) || uint64(head) > e.Bytes {
		return fmt.Errorf("%w: %d bytes of %d in %d", event.ErrRecord, head, e.Bytes, len(raw))
	}
	e.Head = raw[sizeLog : sizeLog+head]
	return nil
}

// Address families of dt_open: the numbers of Linux.
const (
	afUnix  = 1
	afInet  = 2
	afInet6 = 10
)

func (d *Decoder) open(e *event.Event, raw []byte) error {
	le := binary.LittleEndian
	e.Conn = event.Conn{TGID: e.TGID, FD: int32(le.Uint32(raw[48:])), Born: event.Time(le.Uint64(raw[32:]))}
	e.Ino = le.Uint64(raw[40:])
	how := le.Uint16(raw[56:])
	if how < uint16(event.Seeded) || how > uint16(event.Passed) {
		return fmt.Errorf("%w: opened by %d", event.ErrRecord, how)
	}
	e.How = event.How(how)
	peer := netip.AddrFrom16([16]byte(raw[64:80]))
	switch family := le.Uint16(raw[58:]); {
	case (family == afInet || family == afInet6) && !peer.IsUnspecified():
		e.Peer = netip.AddrPortFrom(peer.Unmap(), le.Uint16(raw[60:]))
	case family == afUnix && e.How == event.Accepted:
		e.PeerIno, e.PeerTGID = le.Uint64(raw[64:]), le.Uint32(raw[72:])
	}
	return nil
}

// listenFD returns the listener's fd of a KindOpen record that Decode
// accepted, -1 if it has none.
func listenFD(raw []byte) int32 { return int32(binary.LittleEndian.Uint32(raw[52:])) }
