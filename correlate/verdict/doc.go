// Package verdict says which layer holds the time that guests' disk requests take
// longer than they should, and what may be the cause.
//
// It is pure logic: figures of a Window in, a Finding for each disk out. What is
// usual for a disk it learns from windows in which nothing was wrong. docs/verdict.md
// says what each finding means.
package verdict
