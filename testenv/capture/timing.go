package capture

import "github.com/xenserver/dtagent/testenv/capture/strace"

// usual is how long a system call takes that does not wait, under strace.
const usual = 10_000 // ns

// EstimateEnds sets the end of the calls whose end a recording without strace
// -T does not tell: those that were printed as one line. Nothing else happened
// between their start and their end in any traced process, so the next line's
// time is an upper bound. A call that may wait for an untraced process (a
// read of a request's first bytes, a long read) is taken to end just before
// it, any other to take no longer than usual.
func EstimateEnds(records []strace.Record) {
	for i := range records {
		r := &records[i]
		if r.Kind != strace.Exit || r.Call.End != 0 {
			continue
		}
		gap := int64(usual)
		for j := i + 1; j < len(records); j++ {
			if records[j].Call != r.Call {
				gap = max(0, records[j].Time-r.Call.Start)
				break
			}
		}
		d := min(gap, usual)
		if waits(r.Call) {
			d = max(d, gap-usual)
		}
		r.Call.End = r.Call.Start + d
		r.Time = r.Call.End
	}
}

func waits(c *strace.Call) bool {
	switch c.Name {
	case "accept", "accept4", "connect":
		return true
	case "read", "recvfrom":
		// xapi asks for 6 bytes first, clients of message-switch for 64 KiB.
		ask := asked(c)
		return ask == 6 || ask > smallRead
	}
	return false
}
