package xenstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

// kind is enum xsd_sockmsg_type of xen/include/public/io/xs_wire.h.
type kind uint32

const (
	kindDirectory     kind = 1
	kindRead          kind = 2
	kindWatch         kind = 4
	kindUnwatch       kind = 5
	kindGetDomainPath kind = 10
	kindWatchEvent    kind = 15
	kindError         kind = 16
)

const (
	headerSize = 16   // struct xsd_sockmsg
	maxPayload = 4096 // XENSTORE_PAYLOAD_MAX
	maxPath    = 3072 // XENSTORE_ABS_PATH_MAX
)

// message is one of the wire, in either direction.
type message struct {
	kind    kind
	id      uint32 // which request it answers
	payload []byte
}

var (
	errMessage = errors.New("message not understood")
	errPath    = errors.New("no path of xenstore")
)

// appendMessage appends a request outside of transactions. Its parts end with NUL.
func appendMessage(b []byte, k kind, id uint32, parts ...string) ([]byte, error) {
	n := 0
	for _, p := range parts {
		if p == "" || len(p) > maxPath || strings.IndexByte(p, 0) >= 0 {
			return b, fmt.Errorf("%w: %q", errPath, p)
		}
		n += len(p) + 1
	}
	if n > maxPayload {
		return b, fmt.Errorf("%w: too long", errPath)
	}
	for _, v := range []uint32{uint32(k), id, 0, uint32(n)} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return b, nil
}

// readMessage reads one. A length beyond what the protocol allows is an error, and
// nothing is allocated for it.
func readMessage(r io.Reader) (m message, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return m, err
	}
	m.kind, m.id = kind(binary.NativeEndian.Uint32(h[0:])), binary.NativeEndian.Uint32(h[4:])
	n := binary.NativeEndian.Uint32(h[12:])
	if n > maxPayload {
		return m, fmt.Errorf("%w: %d bytes", errMessage, n)
	}
	m.payload = make([]byte, n)
	if _, err := io.ReadFull(r, m.payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	return m, nil
}

// strings returns the payload's parts, each of which ends with NUL.
func (m message) strings() []string {
	p := bytes.TrimSuffix(m.payload, []byte{0})
	if len(p) == 0 {
		return nil
	}
	return strings.Split(string(p), "\x00")
}

// errnos are the errors that xenstored sends, by name.
var errnos = map[string]syscall.Errno{
	"EINVAL": syscall.EINVAL, "EACCES": syscall.EACCES, "EEXIST": syscall.EEXIST, "EISDIR": syscall.EISDIR, "ENOENT": syscall.ENOENT,
	"ENOMEM": syscall.ENOMEM, "ENOSPC": syscall.ENOSPC, "EIO": syscall.EIO, "ENOTEMPTY": syscall.ENOTEMPTY, "ENOSYS": syscall.ENOSYS,
	"EROFS": syscall.EROFS, "EBUSY": syscall.EBUSY, "EAGAIN": syscall.EAGAIN, "EISCONN": syscall.EISCONN, "E2BIG": syscall.E2BIG,
	"EPERM": syscall.EPERM,
}

// failure returns the error that a message of kindError is.
func (m message) failure() error {
	name := string(bytes.TrimSuffix(m.payload, []byte{0}))
	if e, ok := errnos[name]; ok {
		return e
	}
	return fmt.Errorf("xenstored says %.40q", name)
}
