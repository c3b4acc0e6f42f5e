//go:build linux

package fault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// openISCSI makes a disk of the kernel's iSCSI target, in memory, and logs the
// kernel's initiator in to it, over a network of their own that takes its time. It
// needs neither the daemons nor the configuration that both have otherwise.
func openISCSI(ctx context.Context, o Options, d *device) error {
	for _, m := range []string{"sd_mod", "iscsi_tcp", "target_core_mod", "iscsi_target_mod", "sch_netem"} {
		if err := module(m); err != nil {
			return err
		}
	}
	n, err := d.ownNetwork()
	if err != nil {
		return err
	}
	if err := n.setDelay(0); err != nil {
		return err
	}
	name, port, err := d.target(n, o.Size)
	if err != nil {
		return fmt.Errorf("iscsi target: %w", err)
	}
	conn, err := dialTarget(n, port)
	if err != nil {
		return fmt.Errorf("iscsi: %w", err)
	}
	d.onClose(conn.Close)
	login, err := logIn(conn, initiatorName, name)
	if err != nil {
		return fmt.Errorf("iscsi: login: %w", err)
	}
	host := uint32(0)
	d.block, err = newDisk(ctx, func() (err error) {
		if host, err = d.session(int(conn.Fd()), login); err != nil {
			return fmt.Errorf("iscsi initiator: %w", err)
		}
		return set(fmt.Sprintf("/sys/class/scsi_host/host%d/scan", host), "- - -")
	}, func() string { return fmt.Sprintf("/host%d/session", host) })
	if err != nil {
		return err
	}
	d.path = "/dev/" + d.block
	d.onClose(func() error { return set(filepath.Join("/sys/block", d.block, "device/delete"), 1) })
	d.onClose(func() error { return n.setDelay(0) }) // so that the rest goes quickly
	d.set = n.setDelay
	return nil
}

// initiatorName is that of the initiator. The target lets everybody in.
const initiatorName = "iqn.2026-01.com.xenserver:dtfault"

// target makes an iSCSI target with one disk of memory by way of configfs, and
// returns its name and its port on the loopback of n.
func (d *device) target(n *network, size int64) (name string, port int, err error) {
	root, err := d.detached("configfs")
	if err != nil {
		return "", 0, err
	}
	root = filepath.Join(root, "target")
	disk := filepath.Join(root, "core", fmt.Sprintf("rd_mcp_%d", rand.N(1<<30)), "disk")
	if err := d.mkdir(filepath.Dir(disk)); err != nil {
		return "", 0, missingModule("target_core_mod", err)
	}
	if err := d.mkdir(disk); err != nil {
		return "", 0, err
	}
	name = initiatorName + ":" + uniqueName()
	if err := errors.Join(
		set(filepath.Join(disk, "control"), fmt.Sprintf("rd_pages=%d", size/int64(os.Getpagesize()))),
		set(filepath.Join(disk, "wwn/vpd_unit_serial"), uniqueName()),
		set(filepath.Join(disk, "enable"), 1)); err != nil {
		return "", 0, err
	}
	fabric := filepath.Join(root, "iscsi")
	if err := os.Mkdir(fabric, 0o755); err == nil {
		d.onClose(func() error {
			if err := os.Remove(fabric); !errors.Is(err, unix.ENOTEMPTY) { // another target came
				return err
			}
			return nil
		})
	} else if !errors.Is(err, unix.EEXIST) {
		return "", 0, missingModule("iscsi_target_mod", err)
	}
	group := filepath.Join(fabric, name, "tpgt_1")
	// Ports are the machine's, whatever the network: a target listens but once on each.
	port = 20000 + rand.N(40000)
	for _, dir := range []string{filepath.Dir(group), group, filepath.Join(group, "lun/lun_0")} {
		if err := d.mkdir(dir); err != nil {
			return "", 0, err
		}
	}
	link := filepath.Join(group, "lun/lun_0/disk")
	if err := os.Symlink(disk, link); err != nil {
		return "", 0, err
	}
	d.onClose(func() error { return os.Remove(link) })
	if err := n.inside(func() error {
		return d.mkdir(filepath.Join(group, fmt.Sprintf("np/127.0.0.1:%d", port)))
	}); err != nil {
		return "", 0, err
	}
	if err := errors.Join(
		set(filepath.Join(group, "attrib/authentication"), 0),
		set(filepath.Join(group, "attrib/generate_node_acls"), 1),
		set(filepath.Join(group, "attrib/demo_mode_write_protect"), 0),
		set(filepath.Join(group, "enable"), 1)); err != nil {
		return "", 0, err
	}
	d.onClose(func() error {
		return unbusy(func() error {
			err := set(filepath.Join(group, "enable"), 0)
			if errors.Is(err, unix.EPERM) { // the session is still there
				return errors.Join(err, unix.EBUSY)
			}
			return err
		})
	})
	return name, port, nil
}

// The netlink of the initiator, as of include/scsi/iscsi_if.h.
const (
	iscsiCreateSession  = 11
	iscsiDestroySession = 12
	iscsiCreateConn     = 13
	iscsiDestroyConn    = 14
	iscsiBindConn       = 15
	iscsiSetParam       = 16
	iscsiStartConn      = 17
	iscsiStopConn       = 18

	iscsiStopTerm = 1 // STOP_CONN_TERM
)

// iscsiEvent is struct iscsi_uevent.
type iscsiEvent struct {
	Type, Error uint32
	Transport   uint64
	Args        [6]uint32
	Result      [4]uint32
}

// session makes a session of the initiator from a connection that is logged in,
// and returns the number of its SCSI host.
func (d *device) session(conn int, l *iscsiLogin) (host uint32, err error) {
	b, err := os.ReadFile("/sys/class/iscsi_transport/tcp/handle")
	if err != nil {
		return 0, missingModule("iscsi_tcp", err)
	}
	transport, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, err
	}
	call := func(what string, kind uint32, data string, args ...uint32) ([4]uint32, error) {
		e := iscsiEvent{Type: kind, Transport: transport}
		copy(e.Args[:], args)
		if err := e.call(data); err != nil {
			return e.Result, fmt.Errorf("%s: %w", what, err)
		}
		return e.Result, nil
	}
	const commands, depth = 128, 32
	made, err := call("create session", iscsiCreateSession, "", l.cmdSN, commands|depth<<16)
	if err != nil {
		return 0, err
	}
	sid, host := made[0], made[1]
	simple := func(what string, kind uint32, args ...uint32) error {
		result, err := call(what, kind, "", args...)
		if err == nil && int32(result[0]) < 0 {
			err = fmt.Errorf("%s: %w", what, unix.Errno(-int32(result[0])))
		}
		return err
	}
	d.onClose(func() error { return simple("destroy session", iscsiDestroySession, sid) })
	if _, err := call("create connection", iscsiCreateConn, "", sid, 0); err != nil {
		return 0, err
	}
	d.onClose(func() error { return simple("destroy connection", iscsiDestroyConn, sid, 0) })
	const leading = 1
	if err := simple("bind connection", iscsiBindConn, sid, 0, uint32(conn), 0, leading); err != nil {
		return 0, err
	}
	for _, p := range l.params() {
		result, err := call(fmt.Sprintf("parameter %d", p.number), iscsiSetParam, p.value+"\x00", sid, 0, p.number, uint32(len(p.value)+1))
		if err == nil && int32(result[0]) < 0 {
			err = fmt.Errorf("parameter %d=%s: %w", p.number, p.value, unix.Errno(-int32(result[0])))
		}
		if err != nil {
			return 0, err
		}
	}
	if err := simple("start connection", iscsiStartConn, sid, 0); err != nil {
		return 0, err
	}
	d.onClose(func() error {
		return simple("stop connection", iscsiStopConn, sid, 0, 0, 0, iscsiStopTerm)
	})
	return host, nil
}

// call sends an event with data behind it, and becomes what the kernel answers.
func (e *iscsiEvent) call(data string) error {
	b, err := binary.Append(nil, binary.NativeEndian, e)
	if err != nil {
		return err
	}
	s, err := nl.Subscribe(unix.NETLINK_ISCSI)
	if err != nil {
		return missingModule("scsi_transport_iscsi", err)
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(int(e.Type), 0)
	req.AddRawData(append(b, data...))
	if err := s.Send(req); err != nil {
		return err
	}
	messages, _, err := s.Receive()
	if err != nil {
		return err
	}
	if len(messages) == 0 {
		return errors.New("no answer")
	}
	if _, err := binary.Decode(messages[0].Data, binary.NativeEndian, e); err != nil {
		return fmt.Errorf("answer of %d bytes: %w", len(messages[0].Data), err)
	}
	if e.Error != 0 {
		return unix.Errno(-int32(e.Error))
	}
	return nil
}
