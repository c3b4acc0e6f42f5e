//go:build linux

package bpf

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/probes/event"
)

// layout is one field of a struct, nested structs taken apart: the header of a
// record is a member in C and embedded in Go.
type layout struct {
	Name   string
	Offset uint32
	Size   uint32
}

func layoutOfC(t *testing.T, s *btf.Struct) []layout {
	t.Helper()
	var out []layout
	for _, m := range s.Members {
		size, err := btf.Sizeof(m.Type)
		qt.Assert(t, qt.IsNil(err))
		if size == 0 { // there for its type only
			continue
		}
		if inner, ok := btf.As[*btf.Struct](m.Type); ok {
			for _, l := range layoutOfC(t, inner) {
				l.Offset += m.Offset.Bytes()
				out = append(out, l)
			}
			continue
		}
		out = append(out, layout{m.Name, m.Offset.Bytes(), uint32(size)})
	}
	return out
}

func layoutOfGo(r reflect.Type) []layout {
	var out []layout
	for i := range r.NumField() {
		f := r.Field(i)
		if f.Anonymous {
			for _, l := range layoutOfGo(f.Type) {
				l.Offset += uint32(f.Offset)
				out = append(out, l)
			}
			continue
		}
		out = append(out, layout{f.Name, uint32(f.Offset), uint32(f.Type.Size())})
	}
	return out
}

// normal makes the two languages' names comparable.
func normal(name string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", ""))
	if name == "" {
		return "pad"
	}
	return name
}

func sameLayout(goType reflect.Type, goSide, cSide []layout, cSize uint32) error {
	if goType.Size() != uintptr(cSize) {
		return fmt.Errorf("%s has %d bytes, C %d", goType.Name(), goType.Size(), cSize)
	}
	if len(goSide) != len(cSide) {
		return fmt.Errorf("%s has %d fields, C %d", goType.Name(), len(goSide), len(cSide))
	}
	for i, c := range cSide {
		g := goSide[i]
		if normal(g.Name) != normal(c.Name) || g.Offset != c.Offset || g.Size != c.Size {
			return fmt.Errorf("%s: field %d is %+v, C %+v", goType.Name(), i, g, c)
		}
	}
	return nil
}

var mirrors = map[string]any{
	"dt_hdr": Hdr{}, "dt_data": DataRec{}, "dt_log": LogRec{}, "dt_open": OpenRec{}, "dt_close": CloseRec{},
	"dt_fork": ForkRec{}, "dt_exec": ExecRec{}, "dt_exit": ExitRec{}, "dt_time": TimeRec{},
	"dt_target": target{}, "dt_config": config{}, "dt_conn_key": connKey{}, "dt_conn": conn{}, "dt_inflight": inflight{},
	"dt_thread": thread{}, "dt_call": call{},
	"dt_disk_stat": DiskStat{}, "dt_owner_key": ownerKey{}, "dt_owner": owner{}, "dt_bio_key": bioKey{}, "dt_bio": bio{},
	"dt_request": RequestRec{}, "dt_hist": Hist{}, "dt_tap_conf": tapConf{}, "dt_io_key": ioKey{}, "dt_counts": tapCounts{}, "dt_block_conf": blockConf{},
}

func TestMirrorsMatchObjects(t *testing.T) {
	for _, tier := range []Tier{Legacy, Modern} {
		objects, err := specs(tier)
		qt.Assert(t, qt.IsNil(err))
		for name, mirror := range mirrors {
			found := false
			for _, spec := range objects {
				var s *btf.Struct
				if spec.Types.TypeByName(name, &s) != nil {
					continue
				}
				found = true
				r := reflect.TypeOf(mirror)
				qt.Check(t, qt.IsNil(sameLayout(r, layoutOfGo(r), layoutOfC(t, s), s.Size)), qt.Commentf("%s tier", tier))
			}
			qt.Check(t, qt.IsTrue(found), qt.Commentf("%s tier: no object has struct %s", tier, name))
		}
	}
}

// The comparison itself notices what it is for.
func TestMirrorCheckCanFail(t *testing.T) {
	objects, err := specs(Legacy)
	qt.Assert(t, qt.IsNil(err))
	var s *btf.Struct
	qt.Assert(t, qt.IsNil(objects[Stream].Types.TypeByName("dt_close", &s)))
	for _, wrong := range []any{
		OpenRec{},
		struct {
			Hdr
			Born, BytesOut, BytesIn uint64 // exchanged
			FD                      int32
			_                       uint32
		}{},
		struct {
			Hdr
			Born, BytesIn, BytesOut uint64
			FD                      int16 // too narrow
			_                       [6]uint8
		}{},
	} {
		r := reflect.TypeOf(wrong)
		qt.Check(t, qt.IsNotNil(sameLayout(r, layoutOfGo(r), layoutOfC(t, s), s.Size)))
	}
}

var constant = regexp.MustCompile(`(?m)^(?:#define|\t)\s*(DT_\w+)\s*=?\s*(0x[0-9a-f]+|[0-9]+)\b`)

// constants returns the numbers that a header names.
func constants(t *testing.T, header string) map[string]uint64 {
	t.Helper()
	text, err := os.ReadFile("include/" + header)
	qt.Assert(t, qt.IsNil(err))
	out := map[string]uint64{}
	for _, m := range constant.FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 0, 64)
		qt.Assert(t, qt.IsNil(err))
		out[m[1]] = n
	}
	return out
}

func TestConstantsMatchHeaders(t *testing.T) {
	for header, want := range map[string]map[string]uint64{
		"dt_event.h": {
			"DT_WIRE_VERSION": WireVersion,
			"DT_DATA":         uint64(KindData), "DT_LOG": uint64(KindLog), "DT_OPEN": uint64(KindOpen), "DT_CLOSE": uint64(KindClose),
			"DT_FORK": uint64(KindFork), "DT_EXEC": uint64(KindExec), "DT_EXIT": uint64(KindExit), "DT_TIME": uint64(KindTime), "DT_REQUEST": uint64(KindRequest),
			"DT_R_WRITE": RequestWrite, "DT_R_SLOW": RequestSlow, "DT_R_MERGED": RequestMerged, "DT_R_FAILED": RequestFailed, "DT_R_UNSPLIT": RequestUnsplit,
			"DT_C_TAPDISK": uint64(event.Tapdisk),
			"DT_ON_CPU":    uint64(event.OnCPU), "DT_RUNQ": uint64(event.RunQueue), "DT_HYPERCALL": uint64(event.Hypercall),
			"DT_XENSTORE": spentXenstore, "DT_EVTCHN": spentEventChan, "DT_LOCK": spentLock, "DT_CHILD": spentChild, "DT_FSYNC": spentFsync,
			"DT_FLOCK": spentFlock, "DT_FILE": spentFile, "DT_CONNECTING": spentConnecting, "DT_NETWORK": spentNetwork,
			"DT_SLEEP": spentSleep, "DT_POLL": spentPoll, "DT_PIPE": spentPipe, "DT_OTHER": spentOther, "DT_SPENT": uint64(event.NumSpent),
			"DT_IN": DirIn, "DT_OUT": DirOut,
			"DT_SEEDED": HowSeeded, "DT_ACCEPTED": HowAccepted, "DT_CONNECTED": HowConnected, "DT_PAIRED": HowPaired, "DT_PASSED": HowPassed,
			"DT_F_CUT": FlagCut, "DT_F_MORE": FlagMore, "DT_F_NOENTER": FlagNoEnter, "DT_F_EOF": FlagEOF, "DT_F_THREAD": FlagThread,
			"DT_F_LEADER": FlagLeader, "DT_F_NOCODE": FlagNoCode, "DT_F_NOCPU": FlagNoCPU,
			"DT_ARGS": ExecArgs, "DT_ARG_LEN": ExecArgLen,
		},
		"dt_maps.h": {
			"DT_WATCH_STREAM": uint64(WatchStream), "DT_WATCH_LOG": uint64(WatchLog), "DT_WATCH_PROCESS": uint64(WatchProcess),
			"DT_WATCH_WAIT": uint64(WatchWait),
			"DT_T_CODE":     targetCode, "DT_T_THREADS": targetThreads, "DT_T_GONE": targetGone, "DT_T_EXEC": targetExec,
		},
		"dt_loss.h": {
			"DT_LOSS_OUTPUT": uint64(lossOutput), "DT_LOSS_CONNS": uint64(lossConns), "DT_LOSS_GATHERS": uint64(lossGathers),
			"DT_LOSS_INFLIGHT": uint64(lossInflight), "DT_LOSS_ENTER": uint64(lossEnter), "DT_LOSS_FAULT": uint64(lossFault),
			"DT_LOSS_IOVEC": uint64(lossIovec), "DT_LOSS_REUSED": uint64(lossReused), "DT_LOSS_STALE": uint64(lossStale),
			"DT_LOSS_TARGETS": uint64(lossTargets), "DT_LOSS_CLONES": uint64(lossClones), "DT_LOSS_EXECS": uint64(lossExecs),
			"DT_LOSS_FORGOT": uint64(lossForgot), "DT_LOSS_THREADS": uint64(lossThreads), "DT_LOSS_FDS": uint64(lossFDs),
			"DT_LOSS_SWITCH": uint64(lossSwitch), "DT_LOSS_WAKEUP": uint64(lossWakeup),
			"DT_LOSS_BIOS": uint64(lossBios), "DT_LOSS_SAME": uint64(lossSame), "DT_LOSS_UNENDED": uint64(lossUnended),
			"DT_LOSS_PIECES": uint64(lossPieces),
			"DT_LOSS_IOCBS":  uint64(lossIocbs), "DT_LOSS_PARTS": uint64(lossParts), "DT_LOSS_MANY": uint64(lossMany), "DT_LOSS_ANSWERS": uint64(lossAnswers), "DT_LOSS_CAUSES": uint64(kernelCauses),
			"DT_STREAM": uint64(Stream - 1), "DT_PROCESS": uint64(Process - 1), "DT_WAIT": uint64(Wait - 1), "DT_DISK": uint64(Disk - 1), "DT_TAPDISK": uint64(Tapdisk - 1),
			"DT_PROBES": numProbes,
		},
		"dt_tapdisk.h": {
			"DT_L_TOTAL": uint64(event.LayerTotal), "DT_L_RUNQ": uint64(event.LayerRunQueue), "DT_L_TAPDISK": uint64(event.LayerTapdisk),
			"DT_L_METADATA": uint64(event.LayerMetadata), "DT_L_COPY": uint64(event.LayerCopy), "DT_L_SUBMIT": uint64(event.LayerSubmit),
			"DT_L_QUEUE": uint64(event.LayerQueue), "DT_L_DEVICE": uint64(event.LayerDevice), "DT_L_PICKUP": uint64(event.LayerPickup),
			"DT_LAYERS": uint64(event.NumLayers),
		},
		"dt_disk.h": {
			"DT_READ": uint64(DiskRead), "DT_WRITE": uint64(DiskWrite), "DT_FLUSH": uint64(DiskFlush), "DT_DISCARD": uint64(DiskDiscard),
			"DT_DISK_OPS": uint64(NumDiskOps), "DT_DEVICE": uint64(diskDevice), "DT_DEVICE_OPS": diskDeviceOps, "DT_DISK_STATS": uint64(diskStats),
			"DT_UNIT_SHIFT": diskUnitShift, "DT_SUB_LOG": diskSubLog, "DT_SUB": diskSub, "DT_UNITS_MAX": diskUnitsMax, "DT_BUCKETS": diskBuckets,
		},
	} {
		// Both ways: nothing is missing in Go, nothing is missing in C.
		qt.Check(t, qt.DeepEquals(constants(t, header), want), qt.Commentf(header))
	}
	for header, want := range map[string]map[string]uint64{
		"dt_conn.h": {
			"DT_C_SWITCH": connSwitch, "DT_C_NEW": connNew, "DT_C_PLAIN": connPlain, "DT_C_EOF": connEOF, "DT_C_BODY": connBody,
		},
		"dt_stream.h": {
			"DT_OP_NONE": uint64(opNone), "DT_OP_READ": uint64(opRead), "DT_OP_READV": uint64(opReadv), "DT_OP_ACCEPT": uint64(opAccept),
		},
		"../wait.bpf.c": {
			"DT_BY_FD": byFD, "DT_SELECT": bySelect, "DT_POLLING": byPolling, "DT_CALL_IOCTL": enterIoctl, "DT_CALL_OPEN": enterOpen,
			"DT_CALL_OPENAT": enterOpenat, "DT_CALL_CLOSE": enterClose, "DT_CALL_CONNECT": enterConnect,
		},
	} {
		got := constants(t, header)
		for name, n := range want {
			qt.Check(t, qt.Equals(got[name], n), qt.Commentf(name))
		}
	}
}

func TestEveryLossHasItsName(t *testing.T) {
	seen := map[string]lossCause{}
	for c := range numCauses {
		qt.Check(t, qt.Not(qt.Equals(c.String(), "")), qt.Commentf("cause %d", c))
		_, dup := seen[c.String()]
		qt.Check(t, qt.IsFalse(dup), qt.Commentf("%s twice", c))
		seen[c.String()] = c
	}
}
