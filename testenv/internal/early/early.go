// Package early has the dom0's programs that are small C programs in a real one
// too. They run before the Go runtime starts: one thread, a millisecond.
//
// vfork_helper leaves the session, moves the streams that its caller named into
// place, and becomes the program. xenguest takes orders on its standard input,
// sleeps for DOM0_DELAY_US, and answers. tap-ctl does nothing. forkexecd is the
// daemon: one thread, which forks twice for each request; the second child takes
// the program's descriptors, starts it, and tells its end.
package early

// #cgo CFLAGS: -O2 -Wall
import "C"
