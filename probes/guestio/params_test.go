//go:build linux

package guestio

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestShownParams(t *testing.T) {
	for _, params := range []string{"", "/dev/vg/web", "/dev/sm/backend/a:b", "aio:/dev/vg/web", "qcow2:/a b/c:d=e.qcow2"} {
		qt.Check(t, qt.Equals(shownParams(params), params))
	}
	for params, want := range map[string]string{
		"iscsi://alice%sesame@nas/iqn.a/1":          "iscsi:***",
		"rbd:rbd/disk:id=admin:key=sesame":          "rbd:***",
		`json:{"driver":"ssh","password":"sesame"}`: "json:***",
		"sesame":                     "***",
		"//alice%sesame@nas/share/a": "***",
	} {
		qt.Check(t, qt.Equals(shownParams(params), want), qt.Commentf("%s", params))
	}
}

// Nothing that is told of a disk holds the secret of its backend.
func TestNoSecretOfABackend(t *testing.T) {
	l := newLab(t)
	l.guest(5, "web", "u-5")
	for i, params := range []string{"iscsi://alice%sesame@nas/iqn.a/1", "rbd:rbd/disk:key=sesame", "//alice%sesame@nas/share"} {
		for _, kind := range kinds {
			l.vbd(kind, 5, 51712+16*i, "xvda", map[string]string{"params": params})
		}
	}
	for _, v := range l.watch().Sample().VBDs {
		qt.Check(t, qt.IsFalse(strings.Contains(v.Params+v.Why+v.LayersWhy, "sesame")), qt.Commentf("%+v", v))
	}
}
