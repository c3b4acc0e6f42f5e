package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/xenserver/dtagent/observer"
	"github.com/xenserver/dtagent/probes/event"
)

// errNoWaits says that all is watched but how threads spend their time.
var errNoWaits = errors.New("waits are not told")

// prober is a probes.Manager, as far as what it watches goes.
type prober interface {
	Want(event.Components) error
	SetWaits(on bool, threshold time.Duration) error
}

// follow makes p watch what is wanted. Where waits cannot be told, because the
// kernel does not let the probe for them work, the rest is watched without, and
// the error is errNoWaits.
func follow(p prober, w observer.Wanted) error {
	err := errors.Join(p.SetWaits(w.Waits, w.WaitThreshold), p.Want(w.Components))
	if err == nil || !w.Waits {
		return err
	}
	if errors.Join(p.SetWaits(false, 0), p.Want(w.Components)) != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errNoWaits, err)
}
