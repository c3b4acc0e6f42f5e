package vm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strconv"
	"testing"

	"github.com/go-quicktest/qt"
)

// entries reads an archive by the description of the format.
func entries(t *testing.T, b []byte) (names []string, content map[string]string, mode map[string]int) {
	t.Helper()
	content, mode = map[string]string{}, map[string]int{}
	for at := 0; ; {
		qt.Assert(t, qt.Equals(string(b[at:at+6]), "070701"))
		field := func(i int) int {
			s := string(b[at+6+8*i : at+14+8*i])
			_, err := hex.DecodeString(s)
			qt.Assert(t, qt.IsNil(err))
			n, err := strconv.ParseUint(s, 16, 32)
			qt.Assert(t, qt.IsNil(err))
			return int(n)
		}
		size, nameSize := field(6), field(11)
		name := string(b[at+110 : at+110+nameSize-1])
		qt.Assert(t, qt.Equals(b[at+110+nameSize-1], 0))
		data := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			qt.Check(t, qt.HasLen(b, data))
			return names, content, mode
		}
		names = append(names, name)
		content[name], mode[name] = string(b[data:data+size]), field(1)
		if mode[name] == modeDevice {
			content[name] = strconv.Itoa(field(9)) + ":" + strconv.Itoa(field(10))
		}
		at = (data + size + 3) &^ 3
	}
}

func TestInitramfs(t *testing.T) {
	var b bytes.Buffer
	a := newInitramfs(&b)
	a.device("/dev/console", 5, 1)
	a.file("/src/bpf/x", modeProgram, []byte("12345"))
	a.file("/src/bpf/y", modeFile, nil)
	a.link("/bin/sh", "busybox")
	qt.Assert(t, qt.IsNil(a.close()))
	names, content, mode := entries(t, b.Bytes())
	qt.Check(t, qt.DeepEquals(names, []string{"dev", "dev/console", "src", "src/bpf", "src/bpf/x", "src/bpf/y", "bin", "bin/sh"}))
	qt.Check(t, qt.Equals(content["dev/console"], "5:1"))
	qt.Check(t, qt.Equals(content["src/bpf/x"], "12345"))
	qt.Check(t, qt.Equals(content["bin/sh"], "busybox"))
	qt.Check(t, qt.Equals(mode["bin/sh"], modeLink))
	qt.Check(t, qt.Equals(mode["src"], modeDir))
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestInitramfsWriteFails(t *testing.T) {
	a := newInitramfs(fullDisk{})
	a.file("/x", modeFile, make([]byte, 2<<20))
	qt.Check(t, qt.ErrorMatches(a.close(), "no space"))
}
