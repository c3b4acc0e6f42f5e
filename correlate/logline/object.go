package logline

import (
	"bytes"

	"github.com/xenserver/dtagent/probes/event"
)

// ObjectKind is a class of XAPI's objects.
type ObjectKind uint8

// Kinds of objects that lines name.
const (
	NoObject ObjectKind = iota
	VM
	VDI
	SR
)

var objectWords = [...]struct {
	kind ObjectKind
	word string
}{{VM, "VM = '"}, {VDI, "VDI = '"}, {SR, "SR = '"}}

// maxObjects bounds how many pairs of a line are looked at.
const maxObjects = 4

// NamesObjects tells at little cost whether a datagram can be a line for Objects.
func NamesObjects(datagram []byte) bool { return bytes.Contains(datagram, []byte(" = '")) }

// Objects reads a message that says what a call works at and calls f for each object:
//
//	VM.pool_migrate: VM = '<uuid> (name)'; host = '<uuid> (name)'
//
// It returns the method, nil if the message is none such.
func Objects(message []byte, f func(ObjectKind, []byte)) (method []byte) {
	method, rest, ok := bytes.Cut(message, []byte(": "))
	if !ok || len(method) == 0 || len(method) > 64 || bytes.IndexByte(method, '.') <= 0 {
		return nil
	}
	for _, c := range method {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.') {
			return nil
		}
	}
	found := false
	for range maxObjects {
		for _, o := range objectWords {
			if id, ok := bytes.CutPrefix(rest, []byte(o.word)); ok && len(id) > 36 && event.IsUUID(id[:36]) && (id[36] == '\'' || id[36] == ' ') {
				f(o.kind, id[:36:36])
				found = true
			}
		}
		if _, rest, ok = bytes.Cut(rest, []byte("; ")); !ok {
			break
		}
	}
	if !found {
		return nil
	}
	return method
}
