package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/spf13/pflag"
)

// shippedConfig is the file that packages install.
const shippedConfig = "../../packaging/dtagent.conf"

var commentedOut = regexp.MustCompile(`(?m)^#([a-z-]+ = )`)

// The file that is shipped has each setting there is, with its default, and nothing
// that is in force.
func TestShippedConfig(t *testing.T) {
	text, err := os.ReadFile(shippedConfig)
	qt.Assert(t, qt.IsNil(err))
	n, err := checkConfig(shippedConfig)
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(n, 0))

	settings, mistakes := parseConfig(commentedOut.ReplaceAll(text, []byte("$1")))
	qt.Assert(t, qt.HasLen(mistakes, 0))
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindRun(f)
	var names []string
	lines := strings.Split(string(text), "\n")
	for _, s := range settings {
		names = append(names, s.name)
		flag := f.Lookup(s.name)
		qt.Assert(t, qt.IsNotNil(flag), qt.Commentf("%s", s.name))
		qt.Check(t, qt.Equals(s.value, flag.DefValue), qt.Commentf("%s", s.name))
		qt.Check(t, qt.IsTrue(strings.HasPrefix(lines[s.line-2], "# ")), qt.Commentf("nothing is said of %s", s.name))
	}
	slices.Sort(names)
	qt.Assert(t, qt.DeepEquals(names, settingNames())) // those are sorted, as flags are
	doc, err := os.ReadFile("../../docs/cli.md")
	qt.Assert(t, qt.IsNil(err))
	for _, name := range append(names, "config") {
		qt.Check(t, qt.IsTrue(strings.Contains(string(doc), "`--"+name+"`")), qt.Commentf("docs/cli.md says nothing of --%s", name))
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	read := func(text string, args ...string) (*runSettings, error) {
		path := filepath.Join(dir, "dtagent.conf")
		qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(text), 0o600)))
		f := pflag.NewFlagSet("run", pflag.ContinueOnError)
		s, config := bindRun(f)
		qt.Assert(t, qt.IsNil(f.Parse(append([]string{"--config", path}, args...))))
		err := applyConfig(f, *config)
		if err != nil {
			err = fmt.Errorf("%s", strings.ReplaceAll(err.Error(), path, "F"))
		}
		return s, err
	}

	s, err := read("log-level = \"debug\"\nlegacy = true\nqueue-events = 64 # few\n" +
		"host-name = 'a # b'\nmemory-limit = \"64MiB\"\nbuffer-bytes = 65_536\n\"log-format\" = \"json\"\nexperimental-components = \"smapi\"\n")
	qt.Assert(t, qt.IsNil(err))
	c := s.config()
	qt.Check(t, qt.Equals(s.level.value, "debug"))
	qt.Check(t, qt.Equals(s.format.value, "json"))
	qt.Check(t, qt.IsTrue(c.Legacy))
	qt.Check(t, qt.Equals(c.QueueEvents, 64))
	qt.Check(t, qt.Equals(c.Host.Name, "a # b"))
	qt.Check(t, qt.Equals(c.MemoryLimit, 64<<20))
	qt.Check(t, qt.Equals(c.BufferBytes, 65536))
	qt.Check(t, qt.Equals(c.Experimental.String(), "smapi"))

	// A flag goes before the file, its default value too; the file is checked all the same.
	s, err = read("log-level = \"debug\"\nlegacy = true\n", "--log-level", "info", "--legacy=false")
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(s.level.value, "info"))
	qt.Check(t, qt.IsFalse(s.agent.Legacy))
	_, err = read("log-level = \"loud\"\n", "--log-level", "info")
	qt.Check(t, qt.ErrorMatches(err, `F:1: log-level = "loud": there are debug, info, warn and error`))

	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"# nothing\n\n", ""},
		{"legacy = true\r\n", ""},
		{"log-levle = \"info\"", "F:1: there is no setting \"log-levle\"; `dtagent run --help` lists them, each without its dashes"},
		{"config = \"/etc/x\"", `F:1: there is no setting "config"; .*`},
		{"clock-offset = \"1s\"", `F:1: there is no setting "clock-offset"; .*`},
		{"json = true", `F:1: there is no setting "json"; .*`},
		{"\n\nlog-level = info\n", `F:3: .*; a line is name = value, with text in quotes: log-level = "info"`},
		{"log-level\n", `F:1: .*; a line is name = value, .*`},
		{"legacy = true\n# again\nlegacy = false\n", `F:3: key legacy is already defined; leave one of the lines`},
		{"legacy = \"often\"\n", `F:1: legacy = "often": .*`},
		{"legacy = 2\n", `F:1: legacy = "2": .*`},
		{"queue-events = 1\n", `F:1: queue-events = "1": it is from 2 to 1048576`},
		{"queue-events = 1.5\n", `F:1: queue-events = "1.5": .*`},
		{"memory-limit = \"1MiB\"\n", `F:1: memory-limit = "1MiB": at least 32.0 MiB is needed; 0 is for no limit`},
		{"memory-limit = -1\n", `F:1: memory-limit = "-1": .*`},
		{"buffer-bytes = \"1GiB\"\n", `F:1: buffer-bytes = "1GiB": it is at most 256.0 MiB, .*`},
		{"experimental-components = \"sm\"\n", `F:1: experimental-components = "sm": .*`},
		{"[run]\nlegacy = true\n", `F:1: run: a setting is one line, name = value|F:2: run.legacy: a setting is one line, name = value`},
		{"observers-dir = [\"a\"]\n", `F:1: observers-dir: a setting is one line, name = value`},
		{"frob = 1\nlegacy = 2\n", "F:1: there is no setting \"frob\"; .*\nF:2: legacy = \"2\": .*"},
		{"host-name = \"\xff\"\n", `F:1: .*`},
	} {
		_, err := read(c.text)
		if c.want == "" {
			qt.Check(t, qt.IsNil(err), qt.Commentf("%q", c.text))
		} else {
			qt.Check(t, qt.ErrorMatches(err, c.want), qt.Commentf("%q", c.text))
		}
	}
	_, err = read(strings.Repeat("#", maxConfig+1))
	qt.Check(t, qt.ErrorMatches(err, `F: it is larger than .*`))
}

func TestConfigMissing(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.conf")
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindRun(f)
	qt.Check(t, qt.IsNil(applyConfig(f, absent))) // as the default
	qt.Check(t, qt.IsNil(f.Set("config", absent)))
	qt.Check(t, qt.ErrorIs(applyConfig(f, absent), fs.ErrNotExist))
	qt.Check(t, qt.IsNil(applyConfig(f, "")))
	_, err := checkConfig(absent)
	qt.Check(t, qt.ErrorIs(err, fs.ErrNotExist))

	code, _, stderr := dtagent("run", "--config", absent)
	qt.Check(t, qt.Equals(code, exitConfig))
	qt.Check(t, qt.StringContains(stderr, "no such file"))
	_, err = checkConfig(filepath.Dir(absent))
	qt.Check(t, qt.IsNotNil(err))
}

func FuzzConfig(f *testing.F) {
	text, err := os.ReadFile(shippedConfig)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(commentedOut.ReplaceAll(text, []byte("$1")))
	f.Add([]byte("a.b = 1\n[[c]]\nd = {e = 1}\n"))
	f.Add([]byte("legacy = true\nlegacy = true"))
	f.Fuzz(func(t *testing.T, text []byte) {
		settings, mistakes := parseConfig(text)
		lines := strings.Count(string(text), "\n") + 1
		for _, s := range settings {
			qt.Check(t, qt.IsTrue(s.line >= 1 && s.line <= lines), qt.Commentf("line %d", s.line))
		}
		for _, m := range mistakes {
			qt.Check(t, qt.IsTrue(m.line >= 1 && m.line <= lines), qt.Commentf("line %d", m.line))
		}
	})
}
