package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// moduleTree is /lib/modules/RELEASE as packages have it: without modules.dep,
// which depmod makes when they are installed.
type moduleTree struct {
	dir   string
	plain string                       // directory for modules without compression
	unxz  func([]byte) ([]byte, error) // takes away the compression of Debian's

	files   map[string]string // by name
	builtin map[string]bool
}

// moduleName is what the kernel calls the module in a file; "" if there is none.
func moduleName(file string) string {
	name, ext, ok := strings.Cut(filepath.Base(file), ".ko")
	if !ok || ext != "" && ext != ".xz" {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

// index finds all modules.
func (m *moduleTree) index() error {
	m.files, m.builtin = map[string]string{}, map[string]bool{}
	err := filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if name := moduleName(path); name != "" {
				m.files[name] = path
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(m.dir, "modules.builtin"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if name := moduleName(strings.TrimSpace(line)); name != "" {
			m.builtin[name] = true
		}
	}
	return nil
}

// inOrder returns the files of modules, without compression, each behind those
// that it needs. Of what is built into the kernel there is no file.
func (m *moduleTree) inOrder(names []string) (files []string, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	if err := m.index(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.plain, 0o755); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] || m.builtin[name] {
			return nil
		}
		seen[name] = true
		if m.files[name] == "" {
			return fmt.Errorf("no module %s, and it is not built in", name)
		}
		file, content, err := m.unpack(name)
		if err != nil {
			return err
		}
		hard, soft, err := needs(content)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range soft { // good to have, such as the accelerated one of two
			if n = strings.ReplaceAll(n, "-", "_"); m.files[n] == "" {
				continue
			}
			if err := add(n); err != nil {
				return err
			}
		}
		for _, n := range hard {
			if err := add(n); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
		}
		files = append(files, file)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// unpack takes away a module's compression, once.
func (m *moduleTree) unpack(name string) (file string, content []byte, err error) {
	file = filepath.Join(m.plain, name+".ko")
	if content, err := os.ReadFile(file); err == nil {
		return file, content, nil
	}
	if content, err = os.ReadFile(m.files[name]); err != nil {
		return "", nil, err
	}
	if strings.HasSuffix(m.files[name], ".xz") {
		if content, err = m.unxz(content); err != nil {
			return "", nil, fmt.Errorf("unxz %s: %w", m.files[name], err)
		}
	}
	if err := os.WriteFile(file+".new", content, 0o644); err != nil {
		return "", nil, err
	}
	return file, content, os.Rename(file+".new", file)
}

// needs returns what a module says of others in its section .modinfo: those with
// symbols that it uses, and those that it wants to find loaded.
func needs(module []byte) (hard, soft []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, errors.New("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			hard = append(hard, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep": // "pre: a b post: c"
			pre := false
			for word := range strings.FieldsSeq(value) {
				if strings.HasSuffix(word, ":") {
					pre = word == "pre:"
				} else if pre {
					soft = append(soft, word)
				}
			}
		}
	}
	return hard, soft, nil
}
