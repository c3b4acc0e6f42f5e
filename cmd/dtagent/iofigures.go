package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/xenserver/dtagent/probes/guestio"
)

// direct takes samples in this process until ctx ends or fn fails: without an agent,
// and so without eBPF.
func direct(ctx context.Context, xenstore string, interval time.Duration, fn func(*guestio.Sample) error) error {
	var o guestio.Options
	if xenstore != "" {
		o.Xenstore = []string{xenstore}
	}
	w, err := guestio.New(o).Watch(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := fn(w.Sample()); err != nil {
				return err
			}
		}
	}
}

// printFigures prints what is known without eBPF.
func printFigures(out io.Writer, s *guestio.Sample, zone *time.Location, again bool) error {
	var b strings.Builder
	if again {
		b.WriteString("\x1b[H\x1b[2J")
	}
	fmt.Fprintf(&b, "%s, %d disks, in %s; by figures of tapdisk and dom0, means in ms\n", s.Time.In(zone).Format(time.TimeOnly), len(s.VBDs), duration(s.Seconds))
	if h := s.Host; h != nil {
		fmt.Fprintf(&b, "dom0: %d CPUs, %.0f %% idle, %.1f %% steal\n", h.CPUs, 100*h.Idle, 100*h.Steal)
	}
	if s.Trouble != "" {
		fmt.Fprintf(&b, "trouble: %s\n", plain(s.Trouble))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "dom\tname\tdisk\tpid\tread/s\tMB/s\tmean\twrite/s\tMB/s\tmean\tin flight\ton ring\twaiting\tcpu %\trunq %\tpaused\t\n")
	var notes []string
	for i := range s.VBDs {
		v := &s.VBDs[i]
		disk := v.Device
		if disk == "" {
			disk = strconv.FormatUint(uint64(v.Devid), 10)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t", v.Domid, cut(plain(v.Domain), 20), plain(disk))
		t := v.Tapdisk
		if t == nil {
			why := v.Why
			if v.Kind != guestio.Tapdisk {
				why = "no tapdisk serves it, its backend is " + v.Kind
			}
			notes = append(notes, fmt.Sprintf("%d %s: %s", v.Domid, plain(disk), plain(why)))
			fmt.Fprint(w, strings.Repeat("-\t", 13), "\n")
			continue
		}
		fmt.Fprintf(w, "%d\t", t.PID)
		for _, p := range []*guestio.Processed{&t.Read, &t.Write} {
			rate, mean := 0., "-"
			if t.Seconds > 0 {
				rate = 1 / t.Seconds
			}
			if p.Done > 0 {
				mean = milliseconds(p.MeanUs)
			}
			fmt.Fprintf(w, "%.0f\t%.1f\t%s\t", float64(p.Done)*rate, float64(p.Bytes)*rate/1e6, mean)
		}
		ring, waiting := "-", "-"
		if r := v.Ring; r != nil {
			ring, waiting = fmt.Sprintf("%.0f/%d", r.Occupied, r.Size), fmt.Sprintf("%.0f", r.Waiting)
		}
		paused := "-"
		switch {
		case t.Paused:
			paused = "now"
		case t.PausedSeconds > 0:
			paused = duration(t.PausedSeconds).String()
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%.0f\t%.0f\t%s\t\n", t.InFlight, ring, waiting, 100*t.CPU, 100*t.RunQueue, paused)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.VBDs) == 0 {
		b.WriteString("no guest has a disk\n")
	}
	for _, n := range notes {
		fmt.Fprintln(&b, n)
	}
	for i := range s.SRs {
		printSR(&b, &s.SRs[i])
	}
	if !again {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// printSR prints what is known of the way to an SR, if it is one over a network.
func printSR(b *strings.Builder, r *guestio.SR) {
	if r.NFS == nil && len(r.TCP) == 0 {
		return
	}
	fmt.Fprintf(b, "SR %s (%s)", plain(r.UUID), plain(r.Type))
	if r.Server != "" {
		fmt.Fprintf(b, " on %s", plain(r.Server))
	}
	b.WriteString(":\n")
	if n := r.NFS; n != nil {
		for _, c := range []struct {
			name string
			rpc  *guestio.RPC
		}{{"reads", &n.Read}, {"writes", &n.Write}} {
			fmt.Fprintf(b, "  NFS %s: %d, backlog %s, rtt %s, in all %s ms; %d sent again, %d timeouts\n", c.name, c.rpc.Ops,
				milliseconds(c.rpc.BacklogUs), milliseconds(c.rpc.RTTUs), milliseconds(c.rpc.ExecuteUs), c.rpc.Retransmitted, c.rpc.Timeouts)
		}
	}
	for _, t := range r.TCP {
		fmt.Fprintf(b, "  TCP to %s: %d connections, rtt %s ms, %d of %d segments sent again\n", plain(t.Server), t.Connections, milliseconds(t.RTTUs), t.Retransmitted, t.Segments)
	}
}
