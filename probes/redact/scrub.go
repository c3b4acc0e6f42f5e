package redact

import "bytes"

// secretWords: a name that holds one of these, in any case, and is followed by
// '=' or ':' has a value that is masked.
var secretWords = []string{
	"secret", "passw", "pwd", "session_id", "sessionid", "session_ref", "token",
	"cookie", "authoriz", "credential", "private_key", "apikey", "api_key",
}

// scrub masks secrets in text that is kept otherwise: references, the values
// of names that sound like secrets, credentials after Basic and Bearer, user
// information of URLs.
func scrub(b []byte) {
	for i := 0; i < len(b); {
		if !setKey[b[i]] {
			if b[i] == ':' && bytes.HasPrefix(b[i:], []byte("://")) {
				i = scrubUser(b, i+3)
				continue
			}
			i++
			continue
		}
		n := i + setKey.run(b[i:])
		word := b[i:n]
		switch {
		case holdsFold(word, "opaqueref"):
			for n < len(b) && setRef[b[n]] {
				b[n] = Mask
				n++
			}
			if len(word) > len("OpaqueRef") {
				mask(word)
			}
		case equalFold(word, "basic"), equalFold(word, "bearer"):
			n = scrubValue(b, n)
		case isSecret(word):
			v := n
			for v < len(b) && (b[v] == ' ' || b[v] == '"' || b[v] == '\\' || b[v] == '\'') {
				v++
			}
			if v < len(b) && (b[v] == '=' || b[v] == ':') || bytes.HasPrefix(b[v:], []byte("%3")) {
				n = scrubValue(b, v+1)
			}
		}
		i = n
	}
}

// scrubValue masks the value that starts at or after i and returns its end.
func scrubValue(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '"' || b[i] == '\\' || b[i] == '\'') {
		i++
	}
	for i < len(b) {
		switch b[i] {
		case ' ', '"', '\\', '\'', ';', '&', '|', '<', '>', ')', '}', ']', '\r', '\n':
			return i
		}
		b[i] = Mask
		i++
	}
	return i
}

// scrubUser masks user and password of the URL whose authority starts at i.
func scrubUser(b []byte, i int) int {
	for j := i; j < len(b); j++ {
		switch b[j] {
		case '@':
			mask(b[i:j])
			return j
		case '/', ' ', '"', '\r', '\n':
			return i
		}
	}
	mask(b[i:]) // cut before it says what it is
	return len(b)
}

func isSecret(word []byte) bool {
	for _, s := range secretWords {
		if holdsFold(word, s) {
			return true
		}
	}
	return false
}

// holdsFold tells whether s, in lower case, is somewhere in b in any case.
func holdsFold(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if toLower(b[i]) == s[0] && equalFold(b[i:i+len(s)], s) {
			return true
		}
	}
	return false
}
