//go:build linux

package guestio

import "strings"

// hidden stands for what may hold a secret.
const hidden = "***"

// shownParams returns what a backend opened as far as it may be told: a path, and the
// format before it. QEMU also takes addresses with a password in them, and options with
// a key: iscsi://user%password@host/…, rbd:pool/image:key=…
func shownParams(params string) string {
	format, path, ok := strings.Cut(params, ":")
	switch {
	case params == "", isPath(params), ok && isPath(path):
		return params
	case !ok:
		return hidden
	}
	return format + ":" + hidden
}

func isPath(s string) bool { return strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//") }
