//go:build linux

package tapdisk

import "github.com/xenserver/dtagent/testenv/internal/vhdfile"

// Content says what an image of type VHD holds.
type Content = vhdfile.Content

// CreateVHD makes an image of type VHD in the file or block device at path. Those of
// a chain are of the same size.
func CreateVHD(path string, c Content) error { return vhdfile.Create(path, c) }
