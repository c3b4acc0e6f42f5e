//go:build linux

package fault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// device is every Device: its kind fills it in.
type device struct {
	kind  Kind
	path  string
	block string
	base  string // the block device below, if it is not the driver itself
	set   func(time.Duration) error
	join  func(pid int) error // of kinds that are Joined
	net   *network            // of kinds that have a server

	mu     sync.Mutex
	closed bool
	steps  []func() error
}

// onClose has step undone at the end, before those told earlier.
func (d *device) onClose(step func() error) { d.steps = append(d.steps, step) }

// undo takes back what was done, the last first, all of it whatever fails.
func (d *device) undo() error {
	var errs []error
	for i := len(d.steps) - 1; i >= 0; i-- {
		errs = append(errs, d.steps[i]())
	}
	d.steps = nil
	return errors.Join(errs...)
}

func (d *device) Path() string  { return d.path }
func (d *device) Block() string { return d.block }
func (d *device) Layer() Layer  { return d.kind.Layer }

// maxDelay is the longest that all kinds can do: a driver's requests time out
// after 30 s.
const maxDelay = 10 * time.Second

func (d *device) SetDelay(delay time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("fault %s: closed", d.kind.Name)
	}
	if err := d.setDelay(delay); err != nil {
		return fmt.Errorf("fault %s: %w", d.kind.Name, err)
	}
	return nil
}

func (d *device) setDelay(delay time.Duration) error {
	if delay < 0 || delay > maxDelay || delay%time.Millisecond != 0 {
		return fmt.Errorf("delay %v: 0 to %v in milliseconds can be made", delay, maxDelay)
	}
	return d.set(delay)
}

func (d *device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if err := d.undo(); err != nil {
		return fmt.Errorf("fault %s: close: %w", d.kind.Name, err)
	}
	return nil
}

type joiner struct{ *device }

func (j joiner) Join(pid int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fmt.Errorf("fault %s: closed", j.kind.Name)
	}
	return j.join(pid)
}

// until waits until the kernel has done something.
func until(ctx context.Context, what string, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// unbusy repeats f while the kernel says that others use the thing: a program
// that looks at every new block device may.
func unbusy(f func() error) error {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if err := f(); !isBusy(err) || time.Since(begin) > busyLimit {
			return err
		}
	}
}
