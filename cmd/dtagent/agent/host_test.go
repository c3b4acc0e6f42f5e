package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestReadHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory")
	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("PRODUCT_BRAND='XCP-ng'\nINSTALLATION_UUID='3f6c0000-0000-4000-8000-000000000001'\nCURRENT_INTERFACES=''\n"), 0o600)))
	h, err := ReadHost(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(h.UUID, "3f6c0000-0000-4000-8000-000000000001"))
	qt.Assert(t, qt.Not(qt.Equals(h.Name, "")))

	qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte("PRODUCT_BRAND='XCP-ng'\n"), 0o600)))
	_, err = ReadHost(path)
	qt.Assert(t, qt.ErrorIs(err, ErrNoHost))
	_, err = ReadHost(path + "-absent")
	qt.Assert(t, qt.ErrorIs(err, os.ErrNotExist))
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	qt.Assert(t, qt.IsNil(notify("READY=1")))
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	qt.Assert(t, qt.IsNil(err))
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	qt.Assert(t, qt.IsNil(notify("READY=1")))
	b := make([]byte, 64)
	n, err := l.Read(b)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(string(b[:n]), "READY=1"))
}

func TestCost(t *testing.T) {
	c := cost()
	qt.Assert(t, qt.IsTrue(c.RSSBytes > 1<<20))
	qt.Assert(t, qt.IsTrue(c.HeapBytes > 0 && c.Goroutines > 0))
}
