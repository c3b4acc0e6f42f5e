package xen

import (
	"encoding/binary"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestPayload(t *testing.T) {
	image := make([]byte, 3*512+16)
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 512) // behind two sectors of setup code
	binary.LittleEndian.PutUint32(image[0x24c:], 14)
	copy(image[3*512:], "\xfd7zXZ\x00abcd1234")
	got, err := payload(image)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(string(got), "\xfd7zXZ\x00abcd"))
	for _, bad := range [][]byte{nil, image[:0x240], image[:3*512+13], make([]byte, 2048)} {
		_, err := payload(bad)
		qt.Check(t, qt.IsNotNil(err))
	}
	image[3*512] = 0x28 // zstd
	_, err = payload(image)
	qt.Check(t, qt.ErrorMatches(err, ".*not of xz.*"))
}
