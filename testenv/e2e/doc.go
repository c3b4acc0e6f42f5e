// Package e2e tests the whole path: the built agent with real eBPF beside a
// simulated dom0, calls of real clients, and the spans that come out, compared
// with what the dom0's processes wrote down about themselves.
package e2e
