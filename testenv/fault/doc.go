// Package fault makes disks that are slow, by a known time and in a known layer:
// what is to find out where a guest's disk loses its time can be tested with them.
//
// Every kind of them (Kinds) is a Device: a block device or a file to do I/O on,
// whose delay can be changed while it exists. They are made by talking to the
// kernel, without programs of the machine, and are private where the kernel lets
// them: file systems mounted nowhere, a network of their own. They hold zeros at
// first, and keep what is written in memory unless their kind's text says otherwise.
//
// Delays of less than a few milliseconds are lost in what a machine does anyway.
//
// It needs Linux 5.10 and root. Open says by an error of type *MissingError what
// else a kind needs and the machine lacks; modules are not loaded but have to be
// there.
package fault
