//go:build linux

// Package tapdiskd is the process that stands in for a tapdisk. What it does for a
// guest's requests, and in what order, follows blktap's drivers: the loop around
// select, the ring, the queue of asynchronous I/O whose iocbs are merged, and the
// images. One thread, that of the process, makes all system calls, and makes only
// those that a tapdisk makes, but for one: a write that wakes the guest after the
// ioctl that would.
//
// The Go runtime has threads of its own, which sleep. There is no garbage
// collection, so nothing on the way of a request allocates.
package tapdiskd
