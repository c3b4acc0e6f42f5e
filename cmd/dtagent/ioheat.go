package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/xenserver/dtagent/probes/event"
	"github.com/xenserver/dtagent/probes/guestio"
)

// heatLine is a line of the heat map: of an interval, how many of the requests that
// were chosen took how long.
type heatLine struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"`
	Disks   int       `json:"disks"`
	Octaves []uint64  `json:"octaves"`
}

// heat draws lines until that is enough.
func (f *ioFlags) heat(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	show := (&heatmap{out: out, zone: time.Local, colours: onTerminal(out), plain: !utf8Locale(os.Getenv), width: widthOf(out)}).print
	if asJSON(cmd) {
		enc := json.NewEncoder(out)
		show = func(l *heatLine) error { return enc.Encode(l) }
	}
	return f.samples(cmd, func(s *guestio.Sample) error { return show(heatOf(s, f.heatmap)) })
}

func heatOf(s *guestio.Sample, kind string) *heatLine {
	l := &heatLine{Time: s.Time, Seconds: s.Seconds, Octaves: []uint64{}}
	for i := range s.VBDs {
		v := &s.VBDs[i]
		if v.Seen || v.Layers != nil {
			l.Disks++
		}
		for name, io := range map[string]*guestio.IO{"read": &v.Read, "write": &v.Write} {
			if kind != "all" && kind != name {
				continue
			}
			var octaves []uint64
			if r := requestsOf(v, name == "write", false); r != nil { // all the way through dom0
				octaves = r.Layers[event.LayerTotal.String()].Octaves
			} else if l := io.Interval.Latency; l != nil {
				octaves = l.Octaves
			}
			for at, n := range octaves {
				if at >= heatOctaves {
					at = heatOctaves - 1
				}
				for len(l.Octaves) <= at {
					l.Octaves = append(l.Octaves, 0)
				}
				l.Octaves[at] += n
			}
		}
	}
	return l
}

const (
	heatOctaves = 26 // the last is of all that take longer than a minute
	heatTime    = 9  // columns of the time
	heatRate    = 9  // of the requests a second
	heatHeader  = 20 // lines between headers
)

// heatmap draws lines of latencies: time goes down, latency to the right.
type heatmap struct {
	out     io.Writer
	zone    *time.Location
	colours bool
	plain   bool       // ASCII only
	width   func() int // of the terminal
	lines   int
}

// shape says which octaves have a cell of their own and how wide it is. What does not
// fit is in the first cell or the last.
func (h *heatmap) shape() (from, to, cell int) {
	room := max(h.width()-heatTime-heatRate, 8)
	if room >= heatOctaves {
		return 0, heatOctaves, min(room/heatOctaves, 3)
	}
	cut := heatOctaves - room
	from = min(cut, 5) // below a tenth of a ms there is the least to see
	return from, from + room, 1
}

var (
	heatShades = []string{" ", "░", "▒", "▓", "█"}
	heatASCII  = []string{" ", ".", ":", "*", "#"}
	// from dark blue to white, of the 256 colours
	heatColours = []int{17, 18, 19, 54, 90, 126, 162, 197, 203, 209, 215, 221, 227, 229, 231}
)

func (h *heatmap) print(l *heatLine) error {
	from, to, cell := h.shape()
	var b strings.Builder
	if h.lines%heatHeader == 0 {
		h.header(&b, from, to, cell)
	}
	h.lines++
	cells := make([]uint64, to-from)
	var all uint64
	for i, n := range l.Octaves {
		cells[min(max(i, from), to-1)-from] += n
		all += n
	}
	b.WriteString(l.Time.In(h.zone).Format(time.TimeOnly) + " ")
	for _, n := range cells {
		b.WriteString(h.shade(n, all, cell))
	}
	if h.colours {
		b.WriteString("\x1b[0m")
	}
	fmt.Fprintf(&b, "%*s\n", heatRate-1, fmt.Sprintf("%.0f/s", float64(all)/max(l.Seconds, 1e-3)))
	_, err := io.WriteString(h.out, b.String())
	return err
}

// shade shows which part of all n is: by the square root, since few that are slow
// matter.
func (h *heatmap) shade(n, all uint64, cell int) string {
	heat := 0.0
	if all > 0 {
		heat = math.Sqrt(float64(n) / float64(all))
	}
	if h.colours {
		if n == 0 {
			return "\x1b[0m" + strings.Repeat(" ", cell)
		}
		return fmt.Sprintf("\x1b[48;5;%dm%s", heatColours[min(int(heat*float64(len(heatColours))), len(heatColours)-1)], strings.Repeat(" ", cell))
	}
	shades := heatShades
	if h.plain {
		shades = heatASCII
	}
	at := 0
	if n > 0 {
		at = min(1+int(heat*float64(len(shades)-1)), len(shades)-1)
	}
	return strings.Repeat(shades[at], cell)
}

// header says which latencies the columns are.
func (h *heatmap) header(b *strings.Builder, from, to, cell int) {
	line := []rune(strings.Repeat(" ", heatTime+(to-from)*cell+heatRate))
	free := heatTime
	for _, t := range []struct {
		octave int // that begins there
		name   string
	}{{from, "<"}, {5, "65us"}, {9, "1ms"}, {12, "8ms"}, {16, "134ms"}, {19, "1s"}, {22, "9s"}, {25, "69s"}} {
		at := heatTime + (t.octave-from)*cell
		if t.octave < from || t.octave >= to || at < free || t.octave == from && t.name != "<" || at+len(t.name) > len(line) {
			continue
		}
		copy(line[at:], []rune(t.name))
		free = at + len(t.name) + 1
	}
	b.WriteString(strings.TrimRight(string(line), " ") + "\n")
}

// widthOf returns what says how wide a line can be.
func widthOf(w io.Writer) func() int {
	return func() int {
		if f, ok := w.(*os.File); ok {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
		}
		return 80
	}
}

// utf8Locale tells whether the terminal shows more than ASCII.
func utf8Locale(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := env(name); v != "" {
			v = strings.ToUpper(v)
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}
