package xen

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/xenserver/dtagent/testenv/vm"
)

// merged are the directories that Debian's installer makes links of, to those in
// /usr. Its packages have files in both.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// unneeded is what dom0 here does without: two thirds of the packages.
var unneeded = []string{
	"boot", "origin", "var/lib/dpkg",
	"usr/share/doc", "usr/share/doc-base", "usr/share/info", "usr/share/locale", "usr/share/man", "usr/share/zoneinfo",
	"usr/share/iso-codes", "usr/share/xml", "usr/share/perl", "usr/share/perl5", "usr/share/python3", "usr/share/lintian",
	"usr/share/bash-completion", "usr/share/seabios", "usr/lib/ipxe", "usr/lib/udev", "usr/lib/python3", "usr/lib/python3.11",
	"usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/perl-base", "usr/lib/x86_64-linux-gnu/gstreamer-1.0",
}

// stage puts the files of unpacked packages where they belong below dir.
func stage(tree, dir string) error {
	for _, d := range merged {
		if err := os.MkdirAll(filepath.Join(dir, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		to := place(rel)
		for _, u := range unneeded {
			if to == u && d.IsDir() {
				return fs.SkipDir
			} else if to == u {
				return nil
			}
		}
		return put(path, filepath.Join(dir, to), d)
	})
}

// place returns where a file of a package is on a machine.
func place(file string) string {
	first, _, _ := strings.Cut(file, "/")
	for _, m := range merged {
		if first == m {
			return "usr/" + file
		}
	}
	return file
}

// put makes a directory, a link or a file. What is there stays: the packages of
// one suite have no two of the same name.
func put(from, to string, d fs.DirEntry) error {
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	switch {
	case d.IsDir():
		return os.Mkdir(to, 0o755)
	case d.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case d.Type().IsRegular():
		return copyFile(from, to)
	}
	return nil
}

func copyFile(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, st.Mode().Perm()|0o400)
}

// diskMiB is the size of dom0's disk. It takes what is written, some 250 MiB.
const diskMiB = 1024

// image makes a disk with a file system of all that is below dir.
func (h *Host) image(ctx context.Context, file, dir string) error {
	cmd := vm.Program(ctx, h.tree, "sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", dir, file, fmt.Sprintf("%dM", diskMiB))
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG="+filepath.Join(h.tree, "etc/mke2fs.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return nil
}
