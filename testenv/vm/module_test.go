package vm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// module is an object file with nothing but a section .modinfo.
func module(t testing.TB, info ...string) string {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	text := strings.Join(info, "\x00") + "\x00"
	const header, section = 64, 64
	at := uint64(header)
	var b bytes.Buffer
	put := func(v any) { qt.Assert(t, qt.IsNil(binary.Write(&b, binary.LittleEndian, v))) }
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: header, Shentsize: section, Shnum: 3, Shstrndx: 2,
		Shoff: at + uint64(len(text)+len(names))}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	put(h)
	b.WriteString(text + names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: at, Size: uint64(len(text))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: at + uint64(len(text)), Size: uint64(len(names))})
	return b.String()
}

func TestModulesInOrder(t *testing.T) {
	dir := write(t, map[string]string{
		"kernel/fs/nfsd/nfsd.ko.xz":         module(t, "license=GPL", "depends=sunrpc,nfs-acl"),
		"kernel/net/sunrpc/sunrpc.ko.xz":    module(t, "depends="),
		"kernel/fs/nfs_common/nfs-acl.ko":   module(t, "depends=sunrpc", "softdep=pre: crc32c-fast no_such post: nfsd"),
		"kernel/lib/crc32c-fast.ko.xz":      module(t, "depends=libcrc"),
		"kernel/drivers/broken.ko":          module(t, "depends=gone"),
		"kernel/drivers/firmware/no.module": "",
		"modules.builtin":                   "kernel/lib/libcrc.ko\nkernel/fs/ext4/ext4.ko\n",
	})
	m := func() *moduleTree {
		return &moduleTree{dir: dir, plain: filepath.Join(dir, "plain"), unxz: func(b []byte) ([]byte, error) { return b, nil }}
	}
	for range 2 { // the second time they have been unpacked
		files, err := m().inOrder([]string{"ext4", "nfsd", "sunrpc"})
		qt.Assert(t, qt.IsNil(err))
		var names []string
		for _, f := range files {
			names = append(names, filepath.Base(f))
		}
		qt.Check(t, qt.DeepEquals(names, []string{"sunrpc.ko", "crc32c_fast.ko", "nfs_acl.ko", "nfsd.ko"}))
	}
	_, err := m().inOrder([]string{"broken"})
	qt.Check(t, qt.ErrorMatches(err, "module broken: no module gone, and it is not built in"))
	_, err = m().inOrder([]string{"tapdisk"})
	qt.Check(t, qt.ErrorMatches(err, "no module tapdisk, and it is not built in"))
}

func FuzzNeeds(f *testing.F) {
	f.Add([]byte(module(f, "depends=a,b", "softdep=pre: c")))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = needs(b) })
}
