//go:build linux

package testenv_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

func startPool(t *testing.T, o testenv.PoolOptions) *testenv.Pool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount and network namespaces")
	}
	o.Binary = binary
	o.Dir = t.TempDir()
	p, err := testenv.StartPool(context.Background(), o)
	qt.Assert(t, qt.IsNil(err))
	t.Cleanup(func() {
		qt.Check(t, qt.IsNil(p.Close()))
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(o.Dir, "*", "*.log"))
			for _, name := range logs {
				if b, _ := os.ReadFile(name); len(b) > 0 {
					t.Logf("%s: %.4000s", name, b)
				}
			}
		}
	})
	return p
}

func TestPoolComesUp(t *testing.T) {
	p := startPool(t, testenv.PoolOptions{})
	ctx := timeout(t, 10*time.Second)
	qt.Assert(t, qt.Not(qt.Equals(p.Coordinator.HostUUID(), p.Member.HostUUID())))
	qt.Assert(t, qt.Equals(p.Coordinator.PoolUUID(), p.Member.PoolUUID()))
	_, err := client.Unix(p.Coordinator.XapiSocket(), client.Options{}).Login(ctx)
	qt.Assert(t, qt.IsNil(err))
	for _, d := range p.Hosts() {
		c, err := d.Dial(ctx, "tcp", d.TLSAddr().String())
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.IsNil(c.Close()))
	}
}
