package xapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/go-quicktest/qt"
)

func TestLook(t *testing.T) {
	s := newServer(t)
	s.put("Observer", refOf(1), record(1, "hosts", []string{hostRef}))
	s.put("Observer", refOf(2), record(2, "components", []string{"nonsense"}))
	s.setFault(func(w http.ResponseWriter, method string, params []json.RawMessage, id string) bool {
		if method == "host.get_software_version" && str(params[1]) == hostRef {
			answer(w, id, `{"xapi_build":"25.33.1"}`)
			return true
		}
		return false
	})
	o := fast(s)
	o.HostUUID = hostUUID
	got, err := Look(context.Background(), o)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(got.State.Host.Name, "dom0-1"))
	qt.Check(t, qt.Equals(got.State.Host.PoolUUID, poolUUID))
	qt.Assert(t, qt.HasLen(got.State.Observers, 1))
	qt.Check(t, qt.DeepEquals(got.State.Observers[0].Hosts, []string{hostUUID}))
	qt.Assert(t, qt.HasLen(got.Mistakes, 1))
	qt.Check(t, qt.DeepEquals(got.Software, map[string]string{"xapi_build": "25.33.1"}))
	qt.Check(t, qt.IsFalse(got.Unsupported))
	s.with(func() { qt.Check(t, qt.Equals(s.logouts, s.logins)) })
}

func TestLookFails(t *testing.T) {
	s := newServer(t)
	s.setFault(func(w http.ResponseWriter, method string, params []json.RawMessage, id string) bool {
		if method != "Observer.get_all_records" {
			return false
		}
		s.fail(w, id, "INTERNAL_ERROR", str(params[0]))
		return true
	})
	_, err := Look(context.Background(), fast(s))
	qt.Assert(t, qt.ErrorMatches(err, `Observer.get_all_records: INTERNAL_ERROR .*`))
	qt.Check(t, qt.IsFalse(strings.Contains(err.Error(), "canary")))
	s.with(func() { qt.Check(t, qt.Equals(s.logouts, 1)) })
	s.setFault(func(w http.ResponseWriter, method string, params []json.RawMessage, id string) bool {
		if method != "Observer.get_all_records" {
			return false
		}
		s.fail(w, id, codeUnknownMethod, method)
		return true
	})
	got, err := Look(context.Background(), fast(s)) // before 23.14
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.IsTrue(got.Unsupported))
	qt.Check(t, qt.IsNil(got.Software))

	s.stop()
	_, err = Look(context.Background(), fast(s))
	qt.Check(t, qt.ErrorIs(err, error(syscall.ENOENT)))
}
