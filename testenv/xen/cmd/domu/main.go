//go:build linux

// Command domu is the first process of a guest: it reads and writes the guest's
// disks as it is told on the console, and says what it did.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/testenv/vm/plan"
	"github.com/xenserver/dtagent/testenv/xen/guest"
)

// console is where xenconsoled of dom0 is at the other end.
const console = "/dev/hvc0"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "domu: this is the init process of a test guest")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, guest.Done{Error: serve().Error()})
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// serve takes orders until that is not possible.
func serve() error {
	for _, m := range []struct{ fstype, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.fstype, m.dir, err)
		}
	}
	b, err := os.ReadFile(plan.Path)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("%s: %w", plan.Path, err)
	}
	for _, file := range p.Modules {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
	}
	fd, err := unix.Open(console, unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", console, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: %w", console, err)
	}
	t.Lflag &^= unix.ECHO // what is read is not to be written
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("%s: %w", console, err)
	}
	line := os.NewFile(uintptr(fd), console)
	fmt.Fprintf(line, "\n%s\n", guest.Done{Ready: true})
	in := bufio.NewReader(line)
	for {
		text, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("%s: %w", console, err)
		}
		var o guest.Order
		if err := json.Unmarshal(text, &o); err != nil {
			return fmt.Errorf("order %q: %w", text, err)
		}
		var d guest.Done
		if d.Kernel, err = obey(o); err != nil {
			d.Error = err.Error()
		}
		fmt.Fprintf(line, "\n%s\n", d)
	}
}

// obey writes to a disk and reads from it, and checks what it reads.
func obey(o guest.Order) (done guest.Stat, err error) {
	fd, err := unix.Open("/dev/"+o.Disk, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return done, fmt.Errorf("%s: %w", o.Disk, err)
	}
	f := os.NewFile(uintptr(fd), o.Disk)
	defer f.Close()
	// Pages of their own: requests past the page cache need them.
	buf, err := unix.Mmap(-1, 0, o.Bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return done, err
	}
	defer unix.Munmap(buf)
	before, err := stat(o.Disk)
	if err != nil {
		return done, err
	}
	size := int64(o.Bytes)
	for i := range int64(o.Writes) {
		for j := range buf {
			buf[j] = byte(i) | 1
		}
		if _, err := f.WriteAt(buf, o.At+i*size); err != nil {
			return done, fmt.Errorf("write %d: %w", i, err)
		}
	}
	if err := f.Sync(); err != nil {
		return done, fmt.Errorf("flush: %w", err)
	}
	for i := range int64(o.Reads) {
		if _, err := f.ReadAt(buf, o.At+guest.ReadsFrom+i*(size+guest.ReadGap)); err != nil {
			return done, fmt.Errorf("read %d: %w", i, err)
		}
		if slices.ContainsFunc(buf, func(b byte) bool { return b != 0 }) {
			return done, fmt.Errorf("read %d of %s: not what is there", i, o.Disk)
		}
	}
	after, err := stat(o.Disk)
	return after.Sub(before), err
}

// stat reads what the kernel has counted: Documentation/block/stat.rst.
func stat(disk string) (s guest.Stat, err error) {
	b, err := os.ReadFile("/sys/block/" + disk + "/stat")
	if err != nil {
		return s, err
	}
	fields := strings.Fields(string(b))
	if len(fields) < 7 {
		return s, fmt.Errorf("stat of %s: %q", disk, b)
	}
	var v [7]uint64
	for i := range v {
		if v[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return s, fmt.Errorf("stat of %s: %w", disk, err)
		}
	}
	const sector = 512 // whatever the disk's
	return guest.Stat{Reads: v[0], ReadBytes: v[2] * sector, Writes: v[4], WriteBytes: v[6] * sector}, nil
}
