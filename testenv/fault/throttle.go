//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// openThrottle makes a loop device of memory that may do only so many requests a
// second for the processes of a control group, and puts the caller there. It is a
// rate: a request passes at once when there were few before it, and on the average
// they take the delay and not longer by it.
func openThrottle(_ context.Context, o Options, d *device) error {
	base, err := d.memory(o.Size)
	if err != nil {
		return err
	}
	d.block = fmt.Sprintf("loop%d", base)
	d.path = "/dev/" + d.block
	number, err := os.ReadFile(filepath.Join("/sys/block", d.block, "dev"))
	if err != nil {
		return err
	}
	dev := strings.TrimSpace(string(number))
	root, v2, err := d.ioController()
	if err != nil {
		return err
	}
	own, err := cgroupOf(os.Getpid(), v2)
	if err != nil {
		return err
	}
	if strings.Contains(own, "dtfault-") {
		return errors.New("this process is in the control group of another device: there can be one at a time")
	}
	group := filepath.Join(root, uniqueName())
	if err := d.mkdir(group); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	d.join = func(pid int) error { return set(filepath.Join(group, "cgroup.procs"), pid) }
	d.set = func(delay time.Duration) error {
		if delay > time.Second {
			return fmt.Errorf("delay %v: a request a second is the least that can be had", delay)
		}
		if v2 {
			return set(filepath.Join(group, "io.max"), fmt.Sprintf("%s riops=%s wiops=%[2]s", dev, perSecond(delay, "max")))
		}
		for _, file := range []string{"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device"} {
			if err := set(filepath.Join(group, file), fmt.Sprintf("%s %s", dev, perSecond(delay, "0"))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := d.set(0); err != nil {
		return &MissingError{What: "CONFIG_BLK_DEV_THROTTLING", Err: err}
	}
	d.onClose(func() error { return leave(group, filepath.Join(root, own)) })
	d.onClose(func() error { return d.set(0) })
	return d.join(os.Getpid())
}

// perSecond is how many requests a second take delay each.
func perSecond(delay time.Duration, unlimited string) string {
	if delay == 0 {
		return unlimited
	}
	return fmt.Sprint(max(1, int64(time.Second/delay)))
}

// ioController mounts the control groups that limit I/O: those of version 2, or
// else the hierarchy blkio of version 1.
func (d *device) ioController() (root string, v2 bool, err error) {
	root, err = d.detached("cgroup2")
	if err == nil && lists(filepath.Join(root, "cgroup.controllers"), "io") {
		below := filepath.Join(root, "cgroup.subtree_control")
		if lists(below, "io") {
			return root, true, nil
		}
		d.onClose(func() error {
			if err := set(below, "-io"); !isBusy(err) { // others limit I/O by now
				return err
			}
			return nil
		})
		return root, true, set(below, "+io")
	}
	root, v1 := d.detached("cgroup", "blkio")
	if errors.Is(v1, os.ErrPermission) {
		return "", false, v1
	}
	if v1 != nil {
		return "", false, &MissingError{What: "CONFIG_BLK_CGROUP", Err: errors.Join(err, v1)}
	}
	return root, false, nil
}

// lists tells whether a file of words has that one.
func lists(file, word string) bool {
	b, err := os.ReadFile(file)
	return err == nil && slices.Contains(strings.Fields(string(b)), word)
}

// cgroupOf returns the path of a process's control group below the root.
func cgroupOf(pid int, v2 bool) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) { // id:controllers:path
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) < 3 {
			continue
		}
		for c := range strings.SplitSeq(part[1], ",") {
			if v2 && part[1] == "" || !v2 && c == "blkio" {
				return part[2], nil
			}
		}
	}
	return "/", nil
}

// leave moves all processes of group to another, until there are none.
func leave(group, to string) error {
	return unbusy(func() error {
		b, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(b)) {
			if err := set(filepath.Join(to, "cgroup.procs"), pid); err != nil && !isGone(err) {
				return err
			}
		}
		return nil
	})
}
