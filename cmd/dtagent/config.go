package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// defaultConfig is the file of settings that is read where there is one.
const defaultConfig = "/etc/dtagent/dtagent.conf"

// maxConfig bounds the file, in bytes: the library takes time by the square of it.
const maxConfig = 64 << 10

// settingNames are the settings that the file may have: the flags of run that are
// not hidden, but for the file's own name.
func settingNames() []string {
	var names []string
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindRun(f)
	f.VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden && flag.Name != "config" {
			names = append(names, flag.Name)
		}
	})
	return names
}

// setting is one line of the file.
type setting struct {
	name  string
	value string
	line  int
}

// applyConfig sets those of flags that the file has and the command line has not.
// That the default file is missing is no error, nor is the path "": none is read.
func applyConfig(flags *pflag.FlagSet, path string) error {
	if path == "" {
		return nil
	}
	settings, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !flags.Changed("config") {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range settings {
		if !flags.Changed(s.name) {
			if err := flags.Set(s.name, s.value); err != nil {
				return fmt.Errorf("%s:%d: %w", path, s.line, err)
			}
		}
	}
	return nil
}

// checkConfig says whether the file is good, and how many settings it has. The
// error wraps fs.ErrNotExist when there is no such file, which is fine for
// defaultConfig.
func checkConfig(path string) (settings int, err error) {
	s, err := readConfig(path)
	return len(s), err
}

// readConfig reads the file and checks each setting. The error has all mistakes, each
// with its line.
func readConfig(path string) ([]setting, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w; --config names the file, and without it %s is read where there is one", err, defaultConfig)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("%s: it is larger than %s: this cannot be a file of settings", path, bytesText(maxConfig))
	}
	settings, mistakes := parseConfig(text)
	scratch := pflag.NewFlagSet("run", pflag.ContinueOnError)
	bindRun(scratch)
	known := settingNames()
	for _, s := range settings {
		if !slices.Contains(known, s.name) {
			mistakes = append(mistakes, mistake{s.line, fmt.Sprintf("there is no setting %q; `dtagent run --help` lists them, each without its dashes", s.name)})
			continue
		}
		if err := scratch.Lookup(s.name).Value.Set(s.value); err != nil {
			mistakes = append(mistakes, mistake{s.line, fmt.Sprintf("%s = %q: %v", s.name, s.value, err)})
		}
	}
	slices.SortStableFunc(mistakes, func(a, b mistake) int { return cmp.Compare(a.line, b.line) })
	var errs []error
	for _, m := range mistakes {
		errs = append(errs, fmt.Errorf("%s:%d: %s", path, m.line, m.what))
	}
	return settings, errors.Join(errs...)
}

// mistake is what is wrong in a line of the file.
type mistake struct {
	line int
	what string
}

// parseConfig reads settings, in their order. The file is TOML without tables, since
// its values have types and its errors a place.
func parseConfig(text []byte) ([]setting, []mistake) {
	var values map[string]any
	if err := toml.Unmarshal(text, &values); err != nil {
		return nil, []mistake{syntax(err)}
	}
	// The library tells where a key is only if nothing takes it: so nothing does.
	var none struct{}
	d := toml.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	var keys *toml.StrictMissingError
	if err := d.Decode(&none); err == nil {
		return nil, nil
	} else if !errors.As(err, &keys) {
		return nil, []mistake{syntax(err)}
	}
	var settings []setting
	var mistakes []mistake
	for i := range keys.Errors {
		line, _ := keys.Errors[i].Position()
		key := keys.Errors[i].Key()
		s := setting{name: key[0], line: line}
		switch v := values[key[0]].(type) {
		case string:
			s.value = v
		case bool, int64, float64:
			s.value = fmt.Sprint(v)
		default:
			mistakes = append(mistakes, mistake{line, fmt.Sprintf("%s: a setting is one line, name = value", strings.Join(key, "."))})
			continue
		}
		settings = append(settings, s)
	}
	return settings, mistakes
}

// syntax says what is wrong with the file's form.
func syntax(err error) mistake {
	var e *toml.DecodeError
	if !errors.As(err, &e) {
		return mistake{1, err.Error()}
	}
	line, _ := e.Position()
	what := strings.TrimPrefix(e.Error(), "toml: ")
	if strings.Contains(what, "already") { // the key stands there twice
		return mistake{line, what + "; leave one of the lines"}
	}
	return mistake{line, what + `; a line is name = value, with text in quotes: log-level = "info"`}
}
