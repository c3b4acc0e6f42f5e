//go:build race

package verdict

// slower is by how much less is drawn: these tests have one goroutine.
const slower = 4
