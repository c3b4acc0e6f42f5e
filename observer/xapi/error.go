package xapi

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Codes of XAPI's errors that make a difference here.
const (
	codeSessionInvalid = "SESSION_INVALID"
	codeHandleInvalid  = "HANDLE_INVALID"
	codeUUIDInvalid    = "UUID_INVALID"
	codeUnknownMethod  = "MESSAGE_METHOD_UNKNOWN"
	codeBadToken       = "EVENT_FROM_TOKEN_PARSE_FAILURE"
	codeEventsLost     = "EVENTS_LOST"
)

// Error is an error that XAPI answered with. It never holds a reference: the
// session's is as good as a password.
type Error struct {
	Method string
	Code   string   // such as SESSION_INVALID
	Params []string // of the code
}

// Error is the method, the code and its parameters.
func (e *Error) Error() string {
	if len(e.Params) == 0 {
		return e.Method + ": " + e.Code
	}
	return fmt.Sprintf("%s: %s %q", e.Method, e.Code, e.Params)
}

// isCode tells whether err is XAPI's error of one of those codes.
func isCode(err error, codes ...string) bool {
	var e *Error
	return errors.As(err, &e) && slices.Contains(codes, e.Code)
}

// ReplyError is an answer that is none of XAPI's: not JSON-RPC, too large, or
// another status than 200. It says nothing of its content.
type ReplyError struct {
	Method string
	Reason string
}

func (e *ReplyError) Error() string { return e.Method + ": " + e.Reason }

// nobodyListens tells whether there is no server at the socket, as while the
// toolstack restarts.
func nobodyListens(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

const (
	maxErrorParams = 8
	maxErrorText   = 200 // bytes of each
)

var references = regexp.MustCompile(`(?i)OpaqueRef:[^\s"'\\,;\]})>]*`)

// redact takes the references, and secret, out of a text of XAPI's and bounds
// it.
func redact(text, secret string) string {
	const enough = 4 * maxErrorText
	cut := len(text) > enough
	if cut { // before the search: it may be megabytes long
		text = text[:enough]
	}
	if secret != "" {
		text = strings.ReplaceAll(text, secret, "OpaqueRef:…")
	}
	text = references.ReplaceAllString(text, "OpaqueRef:…")
	if cut { // half a secret may stand at the end
		text = text[:max(len(text)-maxReference, 0)]
	}
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	return text
}
