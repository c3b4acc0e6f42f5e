package tracecontext

import "bytes"

// MaxTracestate is the number of bytes of tracestate that are kept: what the
// W3C asks every implementation to pass on at least.
const MaxTracestate = 512

// TrimTracestate returns s without blanks around it, verbatim if it is at most
// MaxTracestate bytes long, else cut behind the last whole member that fits.
// It does not look into the members: XAPI ignores tracestate, and dtagent only
// carries it.
func TrimTracestate(s []byte) []byte {
	s = bytes.TrimSpace(s)
	if len(s) <= MaxTracestate {
		return s
	}
	end := bytes.LastIndexByte(s[:MaxTracestate+1], ',')
	return bytes.TrimSpace(s[:max(end, 0)])
}
