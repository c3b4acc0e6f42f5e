//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// sweepEvery is how often what ended processes left behind is taken out.
const sweepEvery = 5 * time.Second

func (s *Session) sweeper() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.sweep:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if !s.closed {
			if err := errors.Join(s.sweepTargets(), s.sweepConns(), s.sweepThreads(), s.sweepBios(unendedAfter), s.sweepTapdisks(unendedAfter)); err != nil {
				s.kernel.opt.Log.Debug("sweep of what ended processes left", "err", err)
			}
		}
		s.mu.Unlock()
	}
}

// sweepTargets forgets processes of which nothing is left: those that the kernel
// side kept for the ends of their threads, and those that ended while the
// process probe was not attached.
func (s *Session) sweepTargets() error {
	all, err := s.targets()
	if err != nil {
		return err
	}
	for tgid := range all {
		if errors.Is(unix.Kill(int(tgid), 0), unix.ESRCH) {
			s.maps["dt_targets"].Delete(tgid)
		}
	}
	return nil
}

// sweepConns forgets the sockets of processes that are no targets any more. The
// kernel closes the sockets of a process that ends without a system call, and
// the programs have no loop to find them.
func (s *Session) sweepConns() error {
	all, err := s.targets()
	if err != nil {
		return err
	}
	keys, err := mapKeys[connKey](s.maps["dt_conns"])
	if err != nil {
		return fmt.Errorf("map dt_conns: %w", err)
	}
	for _, k := range keys {
		var c conn
		if s.maps["dt_conns"].Lookup(k, &c) != nil {
			continue
		}
		if t, ok := all[k.TGID]; ok && c.Born >= t.Since {
			continue
		}
		if c.Gather != 0 || c.BulkCalls > 0 {
			s.userLost[Stream-1][lossEnded].Add(1)
		}
		s.maps["dt_conns"].Delete(k)
		s.maps["dt_gathers"].Delete(k)
	}
	return nil
}
