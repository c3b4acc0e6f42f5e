package capture

import (
	"bytes"
	"regexp"
)

// Mask overwrites what is secret in the bytes of a recording.
type Mask struct {
	tasks map[string]bool // first 8 + 4 hex digits of the references that log lines show as R: or D:
}

const masked = 'x'

var (
	reference  = regexp.MustCompile(`OpaqueRef:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`)
	sessionRow = regexp.MustCompile(`(?:create_row|delete_row) session \(OpaqueRef:([0-9a-f]{8})-([0-9a-f]{4})`)
	taskTag    = regexp.MustCompile(`[ |][RD]:([0-9a-f]{12})`)
	loginXML   = regexp.MustCompile(`(?s)<methodName>session\.[a-z_]*login[a-z_]*</methodName>.*?</methodCall>`)
	loginJSON  = regexp.MustCompile(`"method": ?"session\.[a-z_]*login[a-z_]*", ?"params": ?\[[^]]*\]`)
	xmlString  = regexp.MustCompile(`<string>([^<]*)</string>`)
	jsonParams = regexp.MustCompile(`"params": ?\[([^]]*)\]`)
	jsonString = regexp.MustCompile(`"([^"]*)"`)
	cliSecret  = regexp.MustCompile(`(?:username|password|session_id|pool_secret)=([^ &;\r\n]+)`)
	header     = regexp.MustCompile(`(?i)\r\n(?:cookie|authorization|pool_secret): *([^\r\n]*)`)
)

// newMask learns from a recording which references are tasks.
func newMask(payloads []*payload) *Mask {
	m := &Mask{tasks: make(map[string]bool)}
	for _, p := range payloads {
		for _, s := range taskTag.FindAllSubmatch(p.data, -1) {
			m.tasks[string(s[1])] = true
		}
	}
	for _, p := range payloads {
		for _, s := range sessionRow.FindAllSubmatch(p.data, -1) {
			delete(m.tasks, string(s[1])+string(s[2]))
		}
	}
	return m
}

// Bytes masks in place: of a reference to a task, all but the digits that its
// log tag shows; of any other reference, all digits; what logs in; passwords,
// cookies and pool secrets.
func (m *Mask) Bytes(b []byte) {
	const prefix = len("OpaqueRef:")
	for _, at := range reference.FindAllIndex(b, -1) {
		ref := b[at[0]+prefix : at[1]]
		keep := 0
		if m.tasks[string(ref[:8])+string(ref[9:13])] {
			keep = 13
		}
		for i := keep; i < len(ref); i++ {
			if ref[i] != '-' {
				ref[i] = masked
			}
		}
	}
	for _, at := range loginXML.FindAllIndex(b, -1) {
		fill(b[at[0]:at[1]], xmlString)
	}
	for _, at := range loginJSON.FindAllIndex(b, -1) {
		call := b[at[0]:at[1]]
		for _, p := range jsonParams.FindAllSubmatchIndex(call, -1) {
			fill(call[p[2]:p[3]], jsonString)
		}
	}
	fill(b, cliSecret)
	fill(b, header)
}

// fill overwrites the first group of every match.
func fill(b []byte, re *regexp.Regexp) {
	for _, at := range re.FindAllSubmatchIndex(b, -1) {
		copy(b[at[2]:at[3]], bytes.Repeat([]byte{masked}, at[3]-at[2]))
	}
}
