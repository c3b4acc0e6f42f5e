package observer

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"
)

// File is one file of a directory of Observers, as it is now.
type File struct {
	Path     string    // or the directory's, when it cannot be read or holds too many
	Observer *Observer // nil: it cannot be used
	Err      error     // what is wrong with it, nil if nothing is
}

// LookAt reads the directory at path ("": DefaultDir) once, with the eyes of
// Directory at its start: a file that is wrong has no last good state. Files are in
// the order of their paths.
func LookAt(path string) []File {
	d := NewDirectory(path, nil)
	d.scan()
	var out []File
	for name, f := range d.files {
		// One left out because another has its uuid is among the problems.
		if path := filepath.Join(d.path, name); f.good != nil && !d.hasProblem(path) {
			out = append(out, File{Path: path, Observer: f.good})
		}
	}
	for _, p := range d.problems {
		out = append(out, File{Path: p.Path, Err: errors.New(p.Err)})
	}
	slices.SortFunc(out, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

func (d *Directory) hasProblem(path string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Path == path })
}

// Show returns the endpoint of an Observer without what may be secret in it, for logs
// and people: see package masked.
func Show(endpoint string) string { return show(endpoint) }

// Receivers returns the endpoints that o's spans go to: its own and those of
// its attribute dtagent.endpoints, each once, at most as many as are used.
func (o Observer) Receivers() []string {
	st, _ := o.Steering()
	st.Metrics, st.Logs = false, false
	return o.endpoints(st)
}
