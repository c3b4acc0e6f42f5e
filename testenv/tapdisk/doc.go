// Package tapdisk stands in for a tapdisk and its guest: a process named tapdisk that
// makes the system calls of one, on one thread and in its order, and a guest with a
// ring in shared memory, its own clock, and a load to put on its disk.
//
// What it loses its time with can be chosen (Inject), and what it really did with
// each request is known (Request), so that a measurement from outside can be compared.
//
// It is not one in this: where there is no Xen, GRANT_COPY is asked of a file that
// does not know it, fails, and the data are copied by the process itself; the event
// channel is a socket; and a write after the ioctl that notifies the guest is what
// really does so. There is one disk in each tapdisk.
//
// Main has to be called first thing in the main function of whoever calls Start.
package tapdisk
