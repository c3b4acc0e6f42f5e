//go:build linux

package slowfile

import (
	"encoding/binary"
	"testing"

	"github.com/go-quicktest/qt"
	"golang.org/x/sys/unix"
)

// transfer is the body of a read or a write.
func transfer(at uint64, n uint32, data string) []byte {
	b := make([]byte, writeIn)
	binary.NativeEndian.PutUint64(b[8:], at)
	binary.NativeEndian.PutUint32(b[16:], n)
	return append(b, data...)
}

func TestDisk(t *testing.T) {
	d := disk(make([]byte, 8))
	qt.Check(t, qt.DeepEquals(d.answer(opWrite, transfer(2, 3, "abc")), any(writeOut{Size: 3})))
	held := d.answer(opRead, transfer(1, 5, ""))
	qt.Check(t, qt.DeepEquals(d.answer(opWrite, transfer(0, 8, "01234567")), any(writeOut{Size: 8})))
	qt.Check(t, qt.DeepEquals(held, any([]byte("\x00abc\x00"))))
	qt.Check(t, qt.DeepEquals(d.answer(opRead, transfer(6, 9, "")), any([]byte("67"))))
	qt.Check(t, qt.DeepEquals(d.answer(opRead, transfer(1<<63, 9, "")), any([]byte{})))
	qt.Check(t, qt.Equals(d.answer(opWrite, transfer(6, 3, "abc")), any(unix.ENOSPC)))
	qt.Check(t, qt.Equals(d.answer(opWrite, transfer(1<<63, 1, "a")), any(unix.ENOSPC)))
	qt.Check(t, qt.Equals(d.answer(99, nil), any(unix.ENOSYS)))
}

func FuzzDisk(f *testing.F) {
	for _, op := range []uint32{opInit, opGetattr, opOpen, opRead, opWrite, opFsync} {
		f.Add(op, transfer(1, 2, "abcd"))
	}
	f.Fuzz(func(t *testing.T, op uint32, body []byte) {
		disk(make([]byte, 64)).answer(op, body)
	})
}
