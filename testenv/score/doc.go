// Package score compares what the agent says with the ground truth, link by
// link: which spans have the parent that they really had, and which have none or
// another. It drives a mixed load for that: see Run.
//
// A span is found in the truth by what it says of itself (its thread, its
// message, its task), never by its parent. The parent that it should have is the
// nearest ancestor that the kernel side can see.
package score
