// Package probes turns what the kernel side records into events.
//
// A Manager attaches the probes that the wanted components need, keeps the
// kernel's table of target processes, and hands on decoded and redacted events.
package probes
