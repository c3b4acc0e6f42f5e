package observer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// Store edits the files of a directory of local Observers. Each change is
// checked before it is written, and is written to a new file that then takes
// the old one's name, so that a reader sees either. Changes of several processes
// are done one after the other.
type Store struct{ dir string }

// NewStore returns the Store of dir ("": DefaultDir), which is made, with mode
// 0755, when the first Observer is.
func NewStore(dir string) *Store {
	if dir == "" {
		dir = DefaultDir
	}
	return &Store{dir}
}

// ErrNotFound is the error for a uuid that no file has.
var ErrNotFound = errors.New("no such Observer")

// Create writes o to <uuid>.json, mode 0600, and returns the uuid. One is made
// if o has none.
func (s *Store) Create(o Observer) (string, error) {
	if o.UUID == "" {
		o.UUID = uuid.NewString()
	}
	o.UUID = strings.ToLower(o.UUID)
	if err := o.Validate(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	err := s.locked(func() error {
		if _, _, err := s.find(o.UUID); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = fmt.Errorf("observer %s exists already", o.UUID)
			}
			return err
		}
		return s.write(filepath.Join(s.dir, o.UUID+".json"), o)
	})
	if err != nil {
		return "", err
	}
	return o.UUID, nil
}

// List returns the Observers of the good files in the order of file names, and
// an error that names the bad files.
func (s *Store) List() ([]Observer, error) {
	var out []Observer
	err := s.each(func(_ string, o Observer) bool {
		out = append(out, o)
		return true
	})
	return out, err
}

// Get returns the Observer of that uuid.
func (s *Store) Get(id string) (Observer, error) {
	_, o, err := s.find(id)
	return o, err
}

// Update changes the Observer of that uuid by f and writes it if it is valid
// then.
func (s *Store) Update(id string, f func(*Observer) error) error {
	return s.locked(func() error {
		path, o, err := s.find(id)
		if err != nil {
			return err
		}
		if err := f(&o); err != nil {
			return err
		}
		if !strings.EqualFold(o.UUID, id) {
			return errors.New("uuid cannot be changed")
		}
		if err := o.Validate(); err != nil {
			return err
		}
		return s.write(path, o)
	})
}

// Destroy removes the file of the Observer of that uuid, also when the file has
// that name but is not good.
func (s *Store) Destroy(id string) error {
	return s.locked(func() error {
		path, _, err := s.find(id)
		if _, bad := uuid.Parse(id); errors.Is(err, ErrNotFound) && bad == nil {
			if os.Remove(filepath.Join(s.dir, strings.ToLower(id)+".json")) == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
		return os.Remove(path)
	})
}

// each calls f for the good files until it returns false. The error names the
// bad ones.
func (s *Store) each(f func(path string, o Observer) bool) error {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		data, err := readSmall(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var o Observer
		if err == nil {
			o, err = Parse(path, data)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !f(path, o) {
			return nil
		}
	}
	return errors.Join(errs...)
}

func (s *Store) find(id string) (path string, o Observer, err error) {
	bad := s.each(func(p string, got Observer) bool {
		if strings.EqualFold(got.UUID, id) {
			path, o = p, got
		}
		return path == ""
	})
	if path == "" {
		err := fmt.Errorf("observer %s: %w in %s", id, ErrNotFound, s.dir)
		if bad != nil {
			err = fmt.Errorf("%w; files that could not be read:\n%w", err, bad)
		}
		return "", Observer{}, err
	}
	return path, o, nil
}

// locked runs f while no other Store changes the directory.
func (s *Store) locked(f func() error) error {
	d, err := os.Open(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return f() // it will say what is not there
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", s.dir, err)
	}
	return f()
}

func (s *Store) write(path string, o Observer) error {
	// Empty lists are written as such: a file without endpoints means bugtool.
	for _, l := range []*[]string{&o.Hosts, &o.Endpoints, &o.Components} {
		if *l == nil {
			*l = []string{}
		}
	}
	if o.Attributes == nil {
		o.Attributes = map[string]string{}
	}
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(s.dir, ".observer-*.tmp") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(append(data, '\n'))
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return syncDir(s.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ParamSet changes parameters of the Observer of that uuid, in the words of
// xe observer-param-set: see SetWords.
func (s *Store) ParamSet(id string, words ...string) error {
	return s.Update(id, func(o *Observer) error { return o.SetWords(words...) })
}

// ParamGet returns one parameter as xe observer-param-get prints it, or with key
// one value of a map.
func (s *Store) ParamGet(id, param, key string) (string, error) {
	o, err := s.Get(id)
	if err != nil {
		return "", err
	}
	return o.Param(param, key)
}

// ParamAdd adds to a list (values) or a map (k=v or k:v), as xe
// observer-param-add.
func (s *Store) ParamAdd(id, param string, values ...string) error {
	return s.Update(id, func(o *Observer) error {
		if param == "attributes" {
			return o.addAttributes(values, "=:")
		}
		list, err := o.list(param)
		if err != nil {
			return err
		}
		for _, v := range values {
			if !slices.Contains(*list, v) {
				*list = append(*list, v)
			}
		}
		return nil
	})
}

// ParamRemove removes a value of a list or a key of a map, as xe
// observer-param-remove.
func (s *Store) ParamRemove(id, param, key string) error {
	return s.Update(id, func(o *Observer) error {
		if param == "attributes" {
			if _, ok := o.Attributes[key]; !ok {
				return fmt.Errorf("attributes has no key %q", key)
			}
			delete(o.Attributes, key)
			return nil
		}
		list, err := o.list(param)
		if err != nil {
			return err
		}
		i := slices.Index(*list, key)
		if i < 0 {
			return fmt.Errorf("%s has no %q", param, key)
		}
		*list = slices.Delete(*list, i, i+1)
		return nil
	})
}
