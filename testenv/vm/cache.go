package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Cache is a directory with what comes from Debian: QEMU, busybox, kernels, and
// trees of packages. What is there goes on being used when nothing newer can be
// had. Its methods may be called from any goroutine and by several processes;
// those of the same directory wait for each other.
type Cache struct {
	dir string
	log func(string)
}

// CacheDir returns $DTAGENT_CACHE, or the user's cache directory for dtagent.
func CacheDir() (string, error) {
	if d := os.Getenv("DTAGENT_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("set DTAGENT_CACHE: %w", err)
	}
	return filepath.Join(d, "dtagent"), nil
}

// OpenCache returns the cache in dir, which need not be there yet. log is told
// in a line what is fetched, and why something old is used.
func OpenCache(dir string, log func(line string)) (*Cache, error) {
	c := &Cache{dir: filepath.Join(dir, "vm"), log: log}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	return c, nil
}

// Tree unpacks packages of a suite with all that they need into a directory and
// returns it. name tells trees apart. It is renewed when suite or packages are
// others than before.
func (c *Cache) Tree(ctx context.Context, name, suite string, packages ...string) (string, error) {
	unlock, err := c.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	dir := filepath.Join(c.dir, "trees", name)
	origin := strings.Join(append(packages, suite), " ")
	return dir, c.keep(dir, "packages of "+suite, func() error {
		return renewed(dir, origin, func(tmp string) error {
			a, err := c.apt(ctx, suite)
			if err != nil {
				return err
			}
			c.log("fetching " + strings.Join(packages, ", ") + " of " + suite)
			files, err := a.withDependencies(ctx, packages...)
			if err != nil {
				return err
			}
			return unpack(ctx, tmp, files)
		})
	})
}

// apt returns the suite's apt with fresh lists, or with old ones if there are no
// fresh ones to be had.
func (c *Cache) apt(ctx context.Context, suite string) (*apt, error) {
	a, err := newApt(filepath.Join(c.dir, "apt"), suite)
	if err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		if lists, _ := filepath.Glob(a.path("lists/*_Packages*")); len(lists) == 0 {
			return nil, err
		}
		c.log(fmt.Sprintf("suite %s: going on with old lists of packages: %v", suite, err))
	}
	return a, nil
}

// keep renews dir, and goes on with what was there if that fails.
func (c *Cache) keep(dir, what string, renew func() error) error {
	err := renew()
	if err == nil {
		return nil
	}
	origin, missing := os.ReadFile(filepath.Join(dir, "origin"))
	if missing != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	c.log(fmt.Sprintf("%s: going on with what is in the cache (%s): %v", what, origin, err))
	return nil
}

func (c *Cache) lock() (unlock func(), err error) {
	file := filepath.Join(c.dir, "lock")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
	}
}

// renewed makes dir by fill in a directory beside it, unless dir was made from
// the same origin.
func renewed(dir, origin string, fill func(tmp string) error) error {
	if was, err := os.ReadFile(filepath.Join(dir, "origin")); err == nil && string(was) == origin {
		return nil
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "origin"), []byte(origin), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}
