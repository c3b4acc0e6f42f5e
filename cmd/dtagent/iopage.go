package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/xenserver/dtagent/probes/guestio"
)

// ioPage is how a sample is printed: a heading, a table of the disks, and what there is
// to say of some of them.
type ioPage struct {
	s     *guestio.Sample
	again bool // it goes over the one before, on a terminal
	b     strings.Builder
	rows  *tabwriter.Writer
	notes []string
}

func newIOPage(s *guestio.Sample, again bool, heading string) *ioPage {
	p := &ioPage{s: s, again: again}
	if again {
		p.b.WriteString("\x1b[H\x1b[2J")
	}
	p.b.WriteString(heading + "\n")
	if s.Trouble != "" {
		fmt.Fprintf(&p.b, "trouble: %s\n", plain(s.Trouble))
	}
	p.rows = tabwriter.NewWriter(&p.b, 0, 0, 2, ' ', tabwriter.AlignRight)
	return p
}

// samplePeriod says what of a sample is shown, and the unit behind what is counted.
func samplePeriod(s *guestio.Sample, zone *time.Location, totals bool) (from, unit string) {
	if totals {
		return "since " + s.Since.In(zone).Format(time.TimeOnly), ""
	}
	return fmt.Sprintf("in %s", duration(s.Seconds)), "/s"
}

// disk begins the row of a disk.
func (p *ioPage) disk(v *guestio.VBD) {
	fmt.Fprintf(p.rows, "%d\t%s\t%s\t", v.Domid, cut(plain(v.Domain), 20), plain(diskName(v)))
}

// nothing ends the row of a disk of which so many cells are not known.
func (p *ioPage) nothing(cells int) { fmt.Fprint(p.rows, strings.Repeat("-\t", cells), "\n") }

func (p *ioPage) note(v *guestio.VBD, why string) {
	p.notes = append(p.notes, fmt.Sprintf("%d %s: %s", v.Domid, plain(diskName(v)), plain(why)))
}

func diskName(v *guestio.VBD) string {
	if v.Device == "" {
		return strconv.FormatUint(uint64(v.Devid), 10)
	}
	return v.Device
}

// print prints the page, and more at its end.
func (p *ioPage) print(out io.Writer, more string) error {
	if err := p.rows.Flush(); err != nil {
		return err
	}
	if len(p.s.VBDs) == 0 {
		p.b.WriteString("no guest has a disk\n")
	}
	for _, n := range p.notes {
		fmt.Fprintln(&p.b, n)
	}
	p.b.WriteString(more)
	if !p.again {
		p.b.WriteByte('\n')
	}
	_, err := io.WriteString(out, p.b.String())
	return err
}

// latenciesMissing says what was lost.
func latenciesMissing(losses []guestio.Loss) string {
	var b strings.Builder
	for _, l := range losses {
		fmt.Fprintf(&b, "latencies missing: %s: %d\n", l.Cause, l.Count)
	}
	return b.String()
}
