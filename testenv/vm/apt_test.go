package vm

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestParseDepends(t *testing.T) {
	got := parseDepends("dracut | initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool, linux-base-7.2 (= 7.2.13-1), kmod, python3:any\n")
	qt.Check(t, qt.IsTrue(slices.Equal(got, []dependency{
		{"dracut", ""}, {"linux-base-7.2", "7.2.13-1"}, {"kmod", ""}, {"python3", ""},
	})), qt.Commentf("%v", got))
	qt.Check(t, qt.HasLen(parseDepends(" "), 0))
}

func TestSourcesOf(t *testing.T) {
	qt.Check(t, qt.DeepEquals(sourcesOf("bookworm-backports"), []string{"bookworm", "bookworm-backports"}))
	qt.Check(t, qt.DeepEquals(sourcesOf("sid"), []string{"sid"}))
}

func TestNewAptRefusesPaths(t *testing.T) {
	for _, suite := range []string{"", "../sid", "a b", "Sid"} {
		_, err := newApt(t.TempDir(), suite)
		qt.Check(t, qt.ErrorMatches(err, ".*is no name of a suite"))
	}
}

// aptOf returns an apt of a suite with these packages, each with its Depends.
func aptOf(t *testing.T, depends map[string]string) *apt {
	t.Helper()
	bin, records := t.TempDir(), t.TempDir()
	qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(bin, "apt-cache"), []byte(`#!/bin/sh
for last; do :; done
cat "`+records+`/$(echo "$last" | tr / _)" 2>/dev/null || { echo "E: No packages found" >&2; exit 100; }
`), 0o755)))
	for pkg, d := range depends {
		text := "Package: x\n"
		if d != "" {
			text += "Depends: " + d + "\n"
		}
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(records, pkg), []byte(text), 0o644)))
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return &apt{dir: t.TempDir(), suite: "sid"}
}

func TestKernelOf(t *testing.T) {
	for _, c := range []struct {
		name    string
		depends map[string]string
		want    []string
		err     string
	}{
		{"one package", map[string]string{
			"linux-image-cloud-amd64_sid":                "linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)",
			"linux-image-6.1.0-50-cloud-amd64=6.1.176-1": "kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool",
		}, []string{"linux-image-6.1.0-50-cloud-amd64=6.1.176-1"}, ""},
		{"split", map[string]string{
			"linux-image-cloud-amd64_sid":         "linux-base-cloud-amd64 (= 7.2-1), linux-image-7.2-cloud-amd64 (= 7.2-1)",
			"linux-image-7.2-cloud-amd64=7.2-1":   "dracut | initramfs-tools, linux-base-7.2-cloud-amd64 (= 7.2-1), linux-modules-7.2-cloud-amd64 (= 7.2-1)",
			"linux-modules-7.2-cloud-amd64=7.2-1": "kmod, linux-base-7.2-cloud-amd64 (= 7.2-1)",
			"linux-base-7.2-cloud-amd64=7.2-1":    "",
		}, []string{"linux-image-7.2-cloud-amd64=7.2-1", "linux-base-7.2-cloud-amd64=7.2-1", "linux-modules-7.2-cloud-amd64=7.2-1"}, ""},
		{"none", map[string]string{"linux-image-cloud-amd64_sid": "systemd"}, nil, "its linux-image-cloud-amd64 depends on no package linux-image-.*"},
		{"no such flavour", nil, nil, ".*No packages found"},
		{"half of it is missing", map[string]string{"linux-image-cloud-amd64_sid": "linux-image-7.2-cloud-amd64 (= 7.2-1)"}, nil, ".*7.2-cloud-amd64=7.2-1.*No packages found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := aptOf(t, c.depends).kernelOf(t.Context(), Cloud)
			if c.err != "" {
				qt.Assert(t, qt.ErrorMatches(err, c.err))
				return
			}
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.DeepEquals(got, c.want))
		})
	}
}
