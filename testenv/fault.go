package testenv

import (
	"fmt"

	"github.com/xenserver/dtagent/testenv/config"
)

// Outage and Program are those of package config.
type (
	Outage  = config.Outage
	Program = config.Program
)

// Restart ends programs and starts them again, and returns when they serve.
// Sessions, event tokens and tasks of xapi are gone then; what is in its
// database, such as Observers, is kept. The process ids are others: see
// Processes. What was under way has no end in the truth.
func (d *Dom0) Restart(p Program, o Outage) error {
	var now map[string]int
	if err := d.command(config.Command{Restart: &config.Restart{Program: p, Outage: o.WithDefaults()}}, &now); err != nil {
		return fmt.Errorf("testenv: restart %s: %w", p, err)
	}
	d.names.Lock()
	defer d.names.Unlock()
	d.ready.Processes = now
	return nil
}

// ExpireSessions makes all sessions of xapi invalid at once, as the garbage
// collector does with idle ones; calls of event.from that wait in them fail.
func (d *Dom0) ExpireSessions() error {
	if err := d.command(config.Command{ExpireSessions: true}, nil); err != nil {
		return fmt.Errorf("testenv: expire sessions: %w", err)
	}
	return nil
}

// ForgetEvents makes xapi count its database's generations from the start again
// and forget what was deleted, as it does when it had to take an older
// database: every event token given out until now is one of the future.
func (d *Dom0) ForgetEvents() error {
	if err := d.command(config.Command{ForgetEvents: true}, nil); err != nil {
		return fmt.Errorf("testenv: forget events: %w", err)
	}
	return nil
}
