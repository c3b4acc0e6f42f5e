//go:build !race

package verdict

// slower is by how much less is drawn.
const slower = 1
