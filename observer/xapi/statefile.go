package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/xenserver/dtagent/observer"
)

const (
	stateVersion  = 1
	maxStateBytes = maxReply
)

// stateFile keeps the last State for a start without XAPI. It holds no session.
// Endpoints may hold passwords, so it is root's alone.
type stateFile struct {
	path string // "": nothing is kept
	host string // uuid of this host: the file of another one is not used
	last []byte // what the file holds; owned by the one that saves
}

// stored is the form of the file.
type stored struct {
	Version   int                 `json:"version"`
	HostUUID  string              `json:"host_uuid"`
	HostName  string              `json:"host_name"`
	PoolUUID  string              `json:"pool_uuid"`
	Observers []observer.Observer `json:"observers"`
}

// load returns the State in the file, or nil when there is no file. A file that
// cannot be used is renamed to end in .corrupt, over one that was set aside
// before, and what was wrong is the error.
func (f *stateFile) load() (*State, error) {
	if f.path == "" {
		return nil, nil
	}
	data, err := readState(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var st *State
	if err == nil {
		st, err = f.parse(data)
	}
	if err == nil {
		f.last = data
		return st, nil
	}
	err = fmt.Errorf("state file %s: %w", f.path, err)
	aside := f.path + ".corrupt"
	if e := os.Rename(f.path, aside); e != nil {
		return nil, errors.Join(err, e)
	}
	return nil, fmt.Errorf("%w; set aside as %s", err, aside)
}

func readState(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(file, maxStateBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxStateBytes {
		return nil, fmt.Errorf("is larger than %d bytes", maxStateBytes)
	}
	return data, nil
}

// parse reads the file's text. It checks the Observers as those of XAPI are.
func (f *stateFile) parse(data []byte) (*State, error) {
	if !json.Valid(data) {
		return nil, errors.New("is not JSON")
	}
	var observers json.RawMessage
	var in stored
	err := eachMember(data, func(key string, value json.RawMessage) error {
		var ok bool
		switch key {
		case "version":
			ok = json.Unmarshal(value, &in.Version) == nil
		case "host_uuid":
			in.HostUUID, ok = text(value)
		case "host_name":
			in.HostName, ok = text(value)
		case "pool_uuid":
			in.PoolUUID, ok = text(value)
		case "observers":
			observers, ok = value, true
		default:
			return fmt.Errorf("has an unknown key %q", redact(key, ""))
		}
		if !ok {
			return fmt.Errorf("%s is of a wrong type", key)
		}
		return nil
	})
	switch {
	case errors.Is(err, errKind):
		return nil, errors.New("is not a JSON object")
	case err != nil:
		return nil, err
	case in.Version != stateVersion:
		return nil, fmt.Errorf("is of version %d, not %d", in.Version, stateVersion)
	case !strings.EqualFold(in.HostUUID, f.host):
		return nil, errors.New("is that of another host")
	}
	st := &State{Observers: []observer.Observer{}, Host: observer.Host{UUID: strings.ToLower(f.host), Name: in.HostName, PoolUUID: in.PoolUUID}}
	err = eachItem(observers, func(item json.RawMessage) error {
		o, wrong := decodeObserver(item)
		if len(wrong) > 0 {
			return fmt.Errorf("an Observer in it is wrong: %s", strings.Join(wrong, ", "))
		}
		// Another version of dtagent may have known more or less.
		if o, _, ok := sound(o); ok && len(st.Observers) < maxObservers {
			st.Observers = append(st.Observers, o)
		}
		return nil
	})
	if errors.Is(err, errKind) {
		err = errors.New("observers is not a list")
	}
	if err != nil {
		return nil, err
	}
	return st, nil
}

// save writes st, unless the file holds just that. A reader sees the old or the
// new text, also after a crash.
func (f *stateFile) save(st State) error {
	if f.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(stored{stateVersion, strings.ToLower(f.host), st.Host.Name, st.Host.PoolUUID, nonNil(st.Observers)}, "", "  ")
	if err != nil {
		return fmt.Errorf("state file %s: %w", f.path, err)
	}
	data = append(data, '\n')
	if len(data) > maxStateBytes {
		return fmt.Errorf("state file %s: would be larger than %d bytes", f.path, maxStateBytes)
	}
	if bytes.Equal(data, f.last) {
		return nil
	}
	if err := replaceFile(f.path, data); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	f.last = data
	return nil
}

// nonNil writes null as the empty values that decodeObserver takes.
func nonNil(obs []observer.Observer) []observer.Observer {
	out := make([]observer.Observer, len(obs))
	for i, o := range obs {
		if o.Hosts == nil {
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
		out[i] = o
	}
	return out
}

func replaceFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp := path + ".tmp" // always the same: what a crash leaves does not pile up
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	if d, err := os.Open(dir); err == nil { // the rename itself; best effort
		_ = d.Sync()
		d.Close()
	}
	return nil
}
