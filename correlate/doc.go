// Package correlate turns what the probes saw into spans: events in, finished
// spans out. It is pure: no I/O, no clock of its own, no goroutine. The same
// events and the same random numbers give the same spans, so that a recording
// can be played back exactly.
//
// An [Engine] keeps activities, which are spans in the making, and keys that
// point at them. An event finds its activity by the strongest key that applies:
//
//	traceparent  the HTTP header; debug_info in a message between daemons
//	socket       request and reply on one connection; who connected it; who goes on with it;
//	             whom forkexecd starts a program for
//	thread       what a thread does while it works for an activity
//	task         XAPI's task (R:…) and xenopsd's task number
//	clone, fork  threads and processes made by a thread that works for an activity
//	queue        message-switch's queue and message number; xenopsd's own queues
//
// Every key has an epoch: it goes with the thread, process or socket that it
// was made of, so that a number that is used again never leads to old work. No
// key, no parent: parents are never guessed.
//
// Where events got lost, keys that depend on all of them being seen are not
// used across the gap, and what may lack something is Incomplete: loss.go.
//
// Activities that keys join are a tree, which is one trace. The trace id is
// bound late: when a request brings one, when XAPI's own shows up in a message
// that belongs to the tree, when nothing can join the tree any more, or after
// Config.Hold. In the last two cases it is made of the XAPI task that the tree
// is work for, so that all hosts of a pool find the same, and is random when no
// task is known. Until then finished spans of the tree wait; then they leave as
// they finish, children before their parents.
//
// Where the toolstack traces itself, what it sends and logs tells its trace, and which
// of its spans sends (native.go).
//
// The hosts of a pool are joined without a word between their agents: the id of
// the CLIENT span of a call from one host's xapi to another's is made of what both
// see of it (hop.go). Trace ids can differ where the caller of the first call sent
// one and XAPI, whose own tracing is off, did not pass it on; the parent's span
// id is right all the same.
//
// A guest's request to its disk is a trace of its own, with links, not parents, to the
// operations that worked at its VM, its disk or its repository meanwhile (request.go,
// object.go).
//
// What the agent itself asks XAPI is left out and counted, with all that comes
// of it.
//
// Everything is bounded (Limits), and whatever is given up is counted by cause
// (Stats). A span whose end or whose events were missed is Incomplete and says
// why.
//
// A [Sorter] puts the events of several CPUs in order before an Engine sees
// them.
package correlate
