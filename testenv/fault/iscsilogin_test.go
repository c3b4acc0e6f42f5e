//go:build linux

package fault

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// loginResponse is one of a target.
func loginResponse(flags byte, statSN uint32, status uint16, text ...string) []byte {
	data := ""
	for _, pair := range text {
		data += pair + "\x00"
	}
	b := make([]byte, iscsiHeader)
	b[0], b[1] = iscsiLoginResponse, flags
	binary.BigEndian.PutUint32(b[4:], uint32(len(data)))
	binary.BigEndian.PutUint32(b[24:], statSN)
	binary.BigEndian.PutUint16(b[36:], status)
	return append(b, padded(data)...)
}

// talk is a connection to somebody who says what is in it.
type talk struct {
	io.Reader
	said bytes.Buffer
}

func (t *talk) Write(b []byte) (int, error) { return t.said.Write(b) }

func TestLogIn(t *testing.T) {
	conn := &talk{Reader: bytes.NewReader(bytes.Join([][]byte{
		loginResponse(iscsiOperational, 41, 0, "TargetPortalGroupTag=3", "HeaderDigest=None", "ImmediateData=No"),
		loginResponse(iscsiTransit|iscsiOperational|iscsiFullFeature, 42, 0, "MaxRecvDataSegmentLength=65536", "InitialR2T=Yes"),
	}, nil))}
	l, err := logIn(conn, "iqn.us", "iqn.them")
	qt.Assert(t, qt.IsNil(err))
	param := map[uint32]string{}
	for _, p := range l.params() {
		param[p.number] = p.value
	}
	for number, want := range map[uint32]string{0: "262144", 1: "65536", 4: "1", 6: "0", 7: "65536", 14: "43", 15: "iqn.them", 16: "3"} {
		qt.Check(t, qt.Equals(param[number], want), qt.Commentf("parameter %d", number))
	}
	said := conn.said.String()
	qt.Check(t, qt.IsTrue(strings.Contains(said, "InitiatorName=iqn.us\x00TargetName=iqn.them\x00SessionType=Normal\x00")))
	first := binary.BigEndian.Uint32(conn.said.Bytes()[4:])
	qt.Check(t, qt.Equals(conn.said.Len(), 2*iscsiHeader+int(first+3)&^3)) // the second request has nothing more to say
}

func TestLogInFails(t *testing.T) {
	for want, said := range map[string][]byte{
		"EOF":                         nil,
		"unexpected EOF":              loginResponse(0, 0, 0, "a=b")[:50],
		"refused: status 0x0201":      loginResponse(0, 0, 0x0201),
		"no login response: 3f 00 .*": append([]byte{0x3f}, loginResponse(0, 0, 0)[1:]...),
		"no login response: 23 00 .*": loginResponse(0, 0, 0, strings.Repeat("x", iscsiMaxText)),
		"no end after 8 requests":     bytes.Repeat(loginResponse(0, 0, 0), iscsiMaxRound),
	} {
		_, err := logIn(&talk{Reader: bytes.NewReader(said)}, "iqn.us", "iqn.them")
		qt.Check(t, qt.ErrorMatches(err, want))
	}
}

func FuzzLogIn(f *testing.F) {
	f.Add(loginResponse(iscsiTransit|iscsiOperational|iscsiFullFeature, 1, 0, "InitialR2T=Yes", "x", "=", "MaxBurstLength=x"))
	f.Add(loginResponse(0, 1, 0x0300))
	f.Fuzz(func(t *testing.T, said []byte) {
		if l, err := logIn(&talk{Reader: bytes.NewReader(said)}, "iqn.us", "iqn.them"); err == nil {
			l.params()
		}
	})
}
