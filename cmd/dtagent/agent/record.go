package agent

import (
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/xenserver/dtagent/probes/recording"
)

// record begins a recording of what the engine is given.
func (a *agent) record() (*recording.Header, *recording.Tap, error) {
	now, err := a.manager.Now()
	if err != nil {
		return nil, nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, nil, err
	}
	offsets, host := a.manager.Offsets(), a.sources.thisHost()
	h := &recording.Header{
		ID: uuid.NewString(), Version: a.c.Version, Started: time.Unix(0, offsets.Wall(now)).UTC(), KTime: int64(now),
		Host:   recording.Host{UUID: host.UUID, Name: host.Name, PoolUUID: host.PoolUUID},
		Kernel: unix.ByteSliceToString(u.Release[:]), Machine: unix.ByteSliceToString(u.Machine[:]), Tier: a.tier,
		Components: []string{}, Offsets: offsets, Seed: [2]uint64{rand.Uint64(), rand.Uint64()},
	}
	for _, c := range a.set.Wanted().Components.All() {
		h.Components = append(h.Components, c.String())
	}
	tap, err := a.live.Join()
	return h, tap, err
}
