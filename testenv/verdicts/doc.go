// Package verdicts measures how often the agent's verdicts on guests' disks are right.
//
// Stand-ins of tapdisks (testenv/tapdisk) serve guests as disks of a simulated dom0
// (testenv/xenstored). The agent's own code watches them by real eBPF, learns what is
// usual, and says what holds them up while time is lost on purpose. What was done, and
// what the guests' own clocks say, is known.
package verdicts
