package xe

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/xenserver/dtagent/observer"
)

// Store is a directory of Observer files. Several processes may use it at
// once: files appear whole, or not at all.
type Store struct {
	Dir string
}

// Entry is one Observer of a Store and the file that holds it.
type Entry struct {
	Observer observer.Observer
	File     string
}

// ErrNone says that there is no Observer of that uuid.
var ErrNone = errors.New("no such Observer")

// List returns the Observers in order of their names, and what is wrong with
// the files that hold none. A directory that does not exist holds none.
func (s Store) List() (entries []Entry, mistakes []error, err error) {
	files, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("observers directory: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		path := filepath.Join(s.Dir, f.Name())
		o, err := read(path)
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		entries = append(entries, Entry{o, path})
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Observer.NameLabel, b.Observer.NameLabel), cmp.Compare(a.Observer.UUID, b.Observer.UUID))
	})
	return entries, mistakes, nil
}

func read(path string) (observer.Observer, error) {
	f, err := os.Open(path)
	if err != nil {
		return observer.Observer{}, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return observer.Observer{}, errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	b, err := io.ReadAll(io.LimitReader(f, observer.MaxFileBytes+1))
	if err != nil {
		return observer.Observer{}, err
	}
	return observer.Parse(path, b)
}

// Find returns the Observer of that uuid.
func (s Store) Find(id string) (Entry, error) {
	entries, mistakes, err := s.List()
	if err != nil {
		return Entry{}, err
	}
	for _, e := range entries {
		if strings.EqualFold(e.Observer.UUID, id) {
			return e, nil
		}
	}
	err = fmt.Errorf("%w: uuid %q is not in %s; `dtagent observer list` shows those that are", ErrNone, id, s.Dir)
	if len(mistakes) > 0 {
		err = errors.Join(append([]error{err, errors.New("it may be one of the files that could not be read:")}, mistakes...)...)
	}
	return Entry{}, err
}

// Create writes a new Observer and returns its uuid.
func (s Store) Create(o observer.Observer) (string, error) {
	o.UUID = uuid.NewString()
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return "", fmt.Errorf("observers directory: %w", err)
	}
	return o.UUID, s.Save(Entry{o, filepath.Join(s.Dir, o.UUID+".json")})
}

// Save validates the Observer and writes its file anew.
func (s Store) Save(e Entry) error {
	if err := e.Observer.Validate(); err != nil {
		return err
	}
	o := e.Observer.Clone()
	if o.Hosts == nil { // null is no list
		o.Hosts = []string{}
	}
	if o.Attributes == nil {
		o.Attributes = map[string]string{}
	}
	if o.Endpoints == nil {
		o.Endpoints = []string{}
	}
	if o.Components == nil {
		o.Components = []string{}
	}
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return fmt.Errorf("observer %s: %w", o.UUID, err)
	}
	if len(b)+1 > observer.MaxFileBytes {
		return fmt.Errorf("observer %s is larger than %d bytes", o.UUID, observer.MaxFileBytes)
	}
	return replace(e.File, append(b, '\n'))
}

// Destroy removes the Observer of that uuid.
func (s Store) Destroy(id string) error {
	e, err := s.Find(id)
	if err != nil {
		return err
	}
	return os.Remove(e.File)
}

// replace writes a file whole: under a name that no reader takes, to the disk,
// then in its place. Attributes can hold what others should not read.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when it was renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
