//go:build linux

package probes

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/xenserver/dtagent/bpf"
	"github.com/xenserver/dtagent/probes/target"
)

// SetWaits says whether the threads of targets tell how they spend their time,
// and how long a wait has to be to be told by itself; 0 stands for
// bpf.DefaultWait. It has effect while components are wanted, and is kept for
// later wants. Children that run already when it is switched on stay untold.
func (m *Manager) SetWaits(on bool, threshold time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("probes: %w", os.ErrClosed)
	}
	if err := m.session.SetWait(threshold); err != nil {
		return err
	}
	if m.waits == on {
		return nil
	}
	m.waits = on
	if m.wanted == 0 {
		return nil
	}
	return m.want(m.wanted)
}

// waitWatch is what targets are watched for besides what their components need.
// It needs mu.
func (m *Manager) waitWatch() bpf.Watch {
	if m.waits {
		return bpf.WatchWait
	}
	return 0
}

// seedDevices tells the kernel the devices that d had open before its time was
// told. It needs mu.
func (m *Manager) seedDevices(d *daemon) error {
	if d.watch&bpf.WatchWait == 0 {
		d.devices = false
		return nil
	}
	if d.devices {
		return nil
	}
	d.devices = true
	clients, err := target.Clients(target.XenstoredPath)
	if err != nil {
		m.log.Debug("sockets of xenstored not told apart", "err", err) // waits on them count as network
	}
	var errs []error
	for _, dev := range m.watcher.Proc().Devices(d.TGID, clients) {
		kind := bpf.EventChannels
		if dev.Xenstore {
			kind = bpf.Xenstore
		}
		errs = append(errs, m.session.SeedDevice(d.TGID, dev.FD, dev.Link, kind))
	}
	return errors.Join(errs...)
}
