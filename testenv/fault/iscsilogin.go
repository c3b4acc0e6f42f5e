//go:build linux

package fault

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// iSCSI's login, as of RFC 7143.
const (
	iscsiLoginRequest  = 0x03 | 0x40 // immediate
	iscsiLoginResponse = 0x23

	iscsiTransit     = 0x80
	iscsiOperational = 1 << 2 // the stage that the request is of
	iscsiFullFeature = 3      // the stage that is to come

	iscsiHeader   = 48
	iscsiMaxText  = 8192 // before another maximum is agreed upon
	iscsiMaxRound = 8    // requests that a login may take

	iscsiMaxData = 256 << 10 // that we take in a PDU
)

// iscsiLogin is what was agreed upon with a target.
type iscsiLogin struct {
	target    string
	cmdSN     uint32 // of the first command
	expStatSN uint32
	keys      map[string]string // as the target answers
}

// dialTarget connects to a port in the network.
func dialTarget(n *network, port int) (*os.File, error) {
	fd := -1
	err := n.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "iscsi")
	limit := unix.NsecToTimeval(int64(openLimit / time.Nanosecond))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit)
		}
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("connect to the target: %w", err)
	}
	return f, nil
}

// logIn makes a connection that of a session, which is in its full feature phase
// then.
func logIn(conn io.ReadWriter, initiator, target string) (*iscsiLogin, error) {
	l := &iscsiLogin{target: target, cmdSN: 1, keys: map[string]string{}}
	text := strings.Join([]string{
		"InitiatorName=" + initiator,
		"TargetName=" + target,
		"SessionType=Normal",
		"HeaderDigest=None",
		"DataDigest=None",
		"ErrorRecoveryLevel=0",
		"InitialR2T=Yes",
		"ImmediateData=Yes",
		"MaxBurstLength=262144",
		"FirstBurstLength=65536",
		"MaxOutstandingR2T=1",
		"MaxConnections=1",
		"DataPDUInOrder=Yes",
		"DataSequenceInOrder=Yes",
		"DefaultTime2Wait=0",
		"DefaultTime2Retain=0", // the target forgets a session with its connection
		"MaxRecvDataSegmentLength=" + strconv.Itoa(iscsiMaxData),
		"",
	}, "\x00")
	for range iscsiMaxRound {
		header := make([]byte, iscsiHeader)
		header[0] = iscsiLoginRequest
		header[1] = iscsiTransit | iscsiOperational | iscsiFullFeature
		binary.BigEndian.PutUint32(header[4:], uint32(len(text))) // the upper byte is another length, 0
		header[8] = 0x80                                          // the session's identifier: random
		binary.BigEndian.PutUint32(header[9:], uint32(os.Getpid()))
		binary.BigEndian.PutUint32(header[24:], l.cmdSN)
		binary.BigEndian.PutUint32(header[28:], l.expStatSN)
		if _, err := conn.Write(append(header, padded(text)...)); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(conn, header); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(header[4:]) & 0xffffff
		if header[0] != iscsiLoginResponse || header[4] != 0 || n > iscsiMaxText {
			return nil, fmt.Errorf("no login response: % x", header)
		}
		data := make([]byte, (n+3)&^3)
		if _, err := io.ReadFull(conn, data); err != nil {
			return nil, err
		}
		if class, detail := header[36], header[37]; class != 0 {
			return nil, fmt.Errorf("refused: status %#02x%02x", class, detail)
		}
		l.expStatSN = binary.BigEndian.Uint32(header[24:]) + 1
		for pair := range strings.SplitSeq(string(data[:n]), "\x00") {
			if key, value, ok := strings.Cut(pair, "="); ok {
				l.keys[key] = value
			}
		}
		if header[1]&iscsiTransit != 0 && header[1]&3 == iscsiFullFeature {
			return l, nil
		}
		text = ""
	}
	return nil, fmt.Errorf("no end after %d requests", iscsiMaxRound)
}

func padded(text string) []byte {
	return append([]byte(text), make([]byte, (4-len(text)%4)%4)...)
}

// iscsiParam is a parameter of the initiator: enum iscsi_param, and its value.
type iscsiParam struct {
	number uint32
	value  string
}

// params returns all that the initiator has to know.
func (l *iscsiLogin) params() []iscsiParam {
	key := func(name, otherwise string) string {
		v, ok := l.keys[name]
		switch {
		case !ok:
			return otherwise
		case v == "Yes":
			return "1"
		case v == "No":
			return "0"
		}
		return v
	}
	return []iscsiParam{
		{0, strconv.Itoa(iscsiMaxData)},              // MAX_RECV_DLENGTH
		{1, key("MaxRecvDataSegmentLength", "8192")}, // MAX_XMIT_DLENGTH
		{2, "0"},                              // HDRDGST_EN
		{3, "0"},                              // DATADGST_EN
		{4, key("InitialR2T", "1")},           // INITIAL_R2T_EN
		{5, "1"},                              // MAX_R2T
		{6, key("ImmediateData", "1")},        // IMM_DATA_EN
		{7, key("FirstBurstLength", "65536")}, // FIRST_BURST
		{8, key("MaxBurstLength", "262144")},  // MAX_BURST
		{9, "1"},                              // PDU_INORDER_EN
		{10, "1"},                             // DATASEQ_INORDER_EN
		{11, "0"},                             // ERL
		{14, strconv.FormatUint(uint64(l.expStatSN), 10)}, // EXP_STATSN
		{15, l.target},                                      // TARGET_NAME
		{16, key("TargetPortalGroupTag", "1")},              // TPGT
		{19, strconv.Itoa(int(3 * maxDelay / time.Second))}, // SESS_RECOVERY_TMO, s
		{27, "15"}, // ABORT_TMO, s
		{28, "30"}, // LU_RESET_TMO, s
		{30, "0"},  // PING_TMO: nobody is asked whether he is there
		{31, "0"},  // RECV_TMO
	}
}
