// Package xen runs the agent's tests on a real Xen host: Debian's hypervisor, a
// dom0 of Debian's packages and paravirtual guests, all in one QEMU that emulates
// the processor.
//
// It takes from testenv/vm what fetches, boots and reads, and needs no more than
// that: neither root nor KVM. The packages are unpacked, not installed; the few
// things that their installation would have done are in toolstack.sh.
package xen
