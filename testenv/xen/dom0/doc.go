// Package dom0 has the tests that only the dom0 of a Xen host can run: `make
// xentest` makes one. Elsewhere they are skipped.
package dom0
