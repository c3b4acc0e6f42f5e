package xapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/observer"
)

func someState() State {
	return State{
		Host: observer.Host{UUID: hostUUID, Name: "dom0 <1> & \x00", PoolUUID: poolUUID},
		Observers: []observer.Observer{
			{UUID: uuidOf(1), NameLabel: "zero value lists"},
			{UUID: uuidOf(2), Hosts: []string{hostUUID, "OpaqueRef:gone"}, Attributes: map[string]string{"a.b": "c"}, Endpoints: []string{"bugtool", "http://u:p@h:9411/"}, Components: []string{"xapi"}, Enabled: true},
		},
	}
}

func TestStateFile(t *testing.T) {
	path := t.TempDir() + "/made/state.json"
	f := &stateFile{path: path, host: hostUUID}
	st, err := f.load()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsNil(st))

	want := someState()
	qt.Assert(t, qt.IsNil(f.save(want)))
	info, err := os.Stat(path)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(info.Mode().Perm(), 0o600))
	left, _ := filepath.Glob(filepath.Dir(path) + "/*")
	qt.Check(t, qt.HasLen(left, 1))

	again := &stateFile{path: path, host: strings.ToUpper(hostUUID)}
	got, err := again.load()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got.Host.PoolUUID, poolUUID))
	qt.Check(t, qt.HasLen(got.Observers, 2))
	qt.Check(t, qt.DeepEquals(got.Observers[1], want.Observers[1]))
	qt.Check(t, qt.Equals(got.Observers[0].NameLabel, "zero value lists"))

	// Nothing new, nothing written.
	qt.Assert(t, qt.IsNil(os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))))
	qt.Assert(t, qt.IsNil(f.save(want)))
	qt.Assert(t, qt.IsNil((&stateFile{path: path, host: hostUUID, last: f.last}).save(*got)))
	info, _ = os.Stat(path)
	qt.Check(t, qt.Equals(info.ModTime().Unix(), 1))
	want.Observers[0].Enabled = true
	// A crash left its half behind.
	qt.Assert(t, qt.IsNil(os.WriteFile(path+".tmp", []byte("half"), 0o644)))
	qt.Assert(t, qt.IsNil(f.save(want)))
	got, err = again.load()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(got.Observers[0].Enabled))

	none := &stateFile{host: hostUUID}
	qt.Check(t, qt.IsNil(none.save(want)))
}

func TestStateFileSetAside(t *testing.T) {
	good := func(host string) string {
		path := t.TempDir() + "/s"
		qt.Assert(t, qt.IsNil((&stateFile{path: path, host: host}).save(someState())))
		data, err := os.ReadFile(path)
		qt.Assert(t, qt.IsNil(err))
		return string(data)
	}
	for name, c := range map[string]struct {
		data, want string
	}{
		"empty":         {"", "is not JSON"},
		"half":          {good(hostUUID)[:200], "is not JSON"},
		"two":           {good(hostUUID) + "{}", "is not JSON"},
		"zeros":         {strings.Repeat("\x00", 4096), "is not JSON"},
		"list":          {"[]", "is not a JSON object"},
		"version":       {strings.Replace(good(hostUUID), `"version": 1`, `"version": 2`, 1), "is of version 2, not 1"},
		"no version":    {"{}", "is of version 0, not 1"},
		"foreign":       {good(peerUUID), "is that of another host"},
		"unknown key":   {`{"version":1,"session":"` + canary + `"}`, `unknown key "session"`},
		"wrong type":    {`{"version":"1"}`, "version is of a wrong type"},
		"no observers":  {`{"version":1,"host_uuid":"` + hostUUID + `"}`, "observers is not a list"},
		"bad observer":  {strings.Replace(good(hostUUID), `"enabled": true`, `"enabled": 1`, 1), "enabled: must be true or false"},
		"lacking field": {strings.Replace(good(hostUUID), `"hosts": [`, `"hosts_": [`, 1), "not there: hosts"},
		"too large":     {strings.Repeat(" ", maxStateBytes+1), "is larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir() + "/state.json"
			qt.Assert(t, qt.IsNil(os.WriteFile(path+".corrupt", []byte("older"), 0o600)))
			qt.Assert(t, qt.IsNil(os.WriteFile(path, []byte(c.data), 0o600)))
			st, err := (&stateFile{path: path, host: hostUUID}).load()
			qt.Check(t, qt.IsNil(st))
			qt.Check(t, qt.ErrorMatches(err, ".*"+c.want+".*set aside as.*"))
			qt.Check(t, qt.IsFalse(strings.Contains(fmt.Sprint(err), "canary")))
			_, err = os.Stat(path)
			qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
			aside, err := os.ReadFile(path + ".corrupt")
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.IsTrue(string(aside) == c.data))
		})
	}
	t.Run("no file", func(t *testing.T) {
		for what, make := range map[string]func(string) error{
			"directory": func(p string) error { return os.Mkdir(p, 0o700) },
			"pipe":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
			"link":      func(p string) error { return os.Symlink("/etc/passwd", p) },
		} {
			path := t.TempDir() + "/state.json"
			qt.Assert(t, qt.IsNil(make(path)))
			f := &stateFile{path: path, host: hostUUID}
			st, err := f.load()
			qt.Check(t, qt.IsNil(st))
			qt.Check(t, qt.IsNotNil(err), qt.Commentf(what))
			qt.Check(t, qt.IsNil(f.save(someState())), qt.Commentf(what))
		}
	})
}

// TestStart: the Observers of the last run are in force at once, then those of
// XAPI.
func TestStart(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	o := fast(s)
	o.StateFile = t.TempDir() + "/state.json"
	first := run(t, o)
	first.names("o1")
	first.stop()
	qt.Check(t, qt.IsFalse(first.Status().FromStateFile))

	s.stop()
	second := run(t, o)
	took := second.names("o1")
	t.Log("in force after", took)
	qt.Check(t, qt.IsTrue(took < 500*time.Millisecond))
	x := second.Status()
	qt.Check(t, qt.IsTrue(x.FromStateFile))
	qt.Check(t, qt.Equals(x.Observers, 1))
	qt.Check(t, qt.Equals(x.State, Connecting))
	qt.Check(t, qt.Equals(second.state().Host.Name, "dom0-1"))
	qt.Check(t, qt.Equals(second.state().Host.PoolUUID, poolUUID))
	second.stop()

	third := run(t, o)
	third.names("o1")
	s.start()
	third.until("the same Observers from XAPI", func(State) bool { return !third.Status().FromStateFile })
	qt.Check(t, qt.Equals(third.applied(), 1)) // nothing new
	s.observer(2)
	third.names("o1", "o2")
	third.stop()

	// A start with a damaged file.
	qt.Assert(t, qt.IsNil(os.WriteFile(o.StateFile, []byte("{"), 0o600)))
	fourth := run(t, o)
	fourth.names("o1", "o2")
	fourth.until("the file written anew", func(State) bool { return fourth.Status().StateFileErr == "" })
	qt.Check(t, qt.StringContains(fourth.log.String(), "set aside"))
	fourth.stop()
	fifth := &stateFile{path: o.StateFile, host: hostUUID}
	st, err := fifth.load()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(st.Observers, 2))
}

// TestLastStateSaved: what was applied last is in the file after Run, however
// seldom it is written.
func TestLastStateSaved(t *testing.T) {
	s := newServer(t)
	o := fast(s)
	o.StateFile = t.TempDir() + "/state.json"
	o.SaveEvery = time.Hour
	r := run(t, o)
	r.names()
	for n := range 5 {
		s.observer(n)
		time.Sleep(100 * time.Millisecond)
	}
	r.names("o0", "o1", "o2", "o3", "o4")
	r.stop()
	st, err := (&stateFile{path: o.StateFile, host: hostUUID}).load()
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(st.Observers, 5))
}

// TestDiskFull: the Observers change all the same, and the file is written when
// there is room again.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); errors.Is(err, syscall.EPERM) {
		t.Skip("needs root to mount a tmpfs")
	} else {
		qt.Assert(t, qt.IsNil(err))
	}
	t.Cleanup(func() { qt.Check(t, qt.IsNil(syscall.Unmount(dir, syscall.MNT_DETACH))) })
	s := newServer(t)
	s.observer(1)
	o := fast(s)
	o.StateFile = dir + "/state.json"
	o.SaveRetry = 50 * time.Millisecond
	r := run(t, o)
	r.names("o1")
	read := func() string { b, _ := os.ReadFile(o.StateFile); return string(b) }
	r.until("the file", func(State) bool { return strings.Contains(read(), `"o1"`) })
	before := read()
	err := os.WriteFile(dir+"/ballast", make([]byte, 1<<20), 0o600)
	qt.Assert(t, qt.ErrorIs(err, syscall.ENOSPC))
	s.observer(2)
	r.names("o1", "o2")
	r.until("the failure", func(State) bool { return strings.Contains(r.Status().StateFileErr, "no space left") })
	qt.Check(t, qt.Equals(read(), before)) // the old one is whole
	time.Sleep(300 * time.Millisecond)
	qt.Check(t, qt.Equals(strings.Count(r.log.String(), "state file not written"), 1))
	qt.Assert(t, qt.IsNil(os.Remove(dir+"/ballast")))
	r.until("the file", func(State) bool { return strings.Contains(read(), `"o2"`) && r.Status().StateFileErr == "" })
}

// TestStateFileNotUsable: nothing can be kept there; everything else works.
func TestStateFileNotUsable(t *testing.T) {
	s := newServer(t)
	s.observer(1)
	o := fast(s)
	o.StateFile = "/dev/null/state.json"
	r := run(t, o)
	r.names("o1")
	r.until("the failure", func(State) bool { return r.Status().StateFileErr != "" })
}

func FuzzStateFile(f *testing.F) {
	st := someState()
	data, _ := json.Marshal(stored{stateVersion, hostUUID, st.Host.Name, st.Host.PoolUUID, nonNil(st.Observers)})
	f.Add(data)
	f.Add([]byte(`{"version":1,"host_uuid":"","observers":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := (&stateFile{host: hostUUID}).parse(data)
		if (st == nil) != (err != nil) {
			t.Fatal("neither state nor error")
		}
		if st != nil {
			checkState(t, *st)
		}
	})
}
