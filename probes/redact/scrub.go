package redact

import "bytes"

// secretWords: a name that holds one of these, in any case, and is followed by
// '=' or ':' has a value that is masked.
var secretWords = []string{
	"secret", "passw", "pwd", "session_id", "sessionid", "session_ref", "token",
	"credential", "private_key", "private-key", "apikey", "api_key", "api-key",
	"accesskey", "access_key", "access-key", "signature",
}

// secretLines: of a name that holds one of these the whole line is masked.
var secretLines = []string{"authoriz", "cookie"}

const shortest = len("pwd")

// scrub masks secrets in text that is kept otherwise: references, the values
// of names that sound like secrets, credentials after Basic and Bearer; of URLs user
// information and, since any may be a token, all values of the query and the fragment.
func scrub(b []byte) {
	for i := 0; i < len(b); {
		if !setKey[b[i]] {
			if b[i] == ':' && bytes.HasPrefix(b[i:], []byte("://")) {
				i = scrubUser(b, i+3)
				continue
			}
			if b[i] == '?' {
				i = scrubQuery(b, i+1)
				continue
			}
			i++
			continue
		}
		n := i + setKey.run(b[i:])
		word := b[i:n]
		switch {
		case len(word) >= len("OpaqueRef") && holdsFold(word, "opaqueref"):
			for n < len(b) && setRef[b[n]] {
				b[n] = Mask
				n++
			}
			if len(word) > len("OpaqueRef") {
				mask(word)
			}
		case equalFold(word, "basic"), equalFold(word, "bearer"):
			n = scrubValue(b, n)
		case len(word) >= shortest:
			switch v := assigned(b, n); {
			case v == 0:
			case holdsAny(word, secretLines):
				for n = v; n < len(b) && b[n] != '\r' && b[n] != '\n'; n++ {
					b[n] = Mask
				}
			case holdsAny(word, secretWords):
				n = scrubValue(b, v)
			}
		}
		i = n
	}
}

// assigned returns where the value starts that the word before n is given, 0
// if it is given none: name=value, "name": "value", name%3Dvalue, escaped or
// not.
func assigned(b []byte, n int) int {
	for n < len(b) && (b[n] == ' ' || b[n] == '"' || b[n] == '\\' || b[n] == '\'') {
		n++
	}
	if n < len(b) && (b[n] == '=' || b[n] == ':') {
		return n + 1
	}
	if n+2 < len(b) && b[n] == '%' && b[n+1] == '3' {
		return n + 3
	}
	return 0
}

// scrubValue masks the value that starts at or after i and returns its end: the
// closing quote of a value in quotes, else the first byte that no value holds.
func scrubValue(b []byte, i int) int {
	quote := byte(0)
	for i < len(b) && (b[i] == ' ' || b[i] == '"' || b[i] == '\\' || b[i] == '\'') {
		if b[i] == '"' || b[i] == '\'' {
			quote = b[i]
		}
		i++
	}
	for ; i < len(b); i++ {
		if quote != 0 {
			if b[i] == quote {
				return i
			}
		} else {
			switch b[i] {
			case ' ', '"', '\\', '\'', ';', '&', '|', '<', '>', ')', '}', ']', '\r', '\n':
				return i
			}
		}
		b[i] = Mask
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

// scrubQuery masks the query that starts at i but for its names, and the fragment behind
// it, and returns where they end. It may be no query at all, but text with a question
// mark in it.
func scrubQuery(b []byte, i int) int {
	for {
		if n := i + setKey.run(b[i:]); n > i && n < len(b) && b[n] == '=' {
			i = n + 1
			if quoted := bytes.TrimLeft(b[i:], `\`); len(quoted) > 0 && (quoted[0] == '"' || quoted[0] == '\'') {
				i = scrubValue(b, i)
			}
		}
		for i < len(b) && !setNoQuery[b[i]] {
			b[i] = Mask
			i++
		}
		if i == len(b) || b[i] != '&' && b[i] != ';' {
			return i
		}
		i++
	}
}

func holdsAny(word []byte, list []string) bool {
	for _, s := range list {
		if holdsFold(word, s) {
			return true
		}
	}
	return false
}

// holdsFold tells whether s, in lower case, is somewhere in b in any case.
func holdsFold(b []byte, s string) bool {
	first, other := s[0], s[0]-'a'+'A'
	for i := 0; i+len(s) <= len(b); i++ {
		if (b[i] == first || b[i] == other) && equalFold(b[i:i+len(s)], s) {
			return true
		}
	}
	return false
}
