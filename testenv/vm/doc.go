// Package vm runs the kernel tests on other kernels than the machine's own: it
// boots Debian's kernels under QEMU with an initramfs that holds the tests as
// static binaries, and reads what they print from a serial line.
//
// It needs an x86-64 machine with apt-get, dpkg-deb and Go, and neither root
// nor KVM: QEMU emulates the processor. QEMU itself, busybox and the kernels are
// Debian packages, fetched into a cache and unpacked there; nothing is installed.
package vm
