package observer

import (
	"fmt"
	"strings"
)

// didYouMean returns the hint at the one of names that was probably meant, or
// "".
func didYouMean(s string, names []string) string {
	if n := nearest(s, names); n != "" {
		return fmt.Sprintf(", did you mean %s?", n)
	}
	return ""
}

// nearest returns the one of names that differs from s in punctuation and case
// only, or else in the fewest letters, at most two and less than a third; "" if
// there is none.
func nearest(s string, names []string) string {
	plain := strings.NewReplacer(".", "", "_", "", "-", "")
	norm := func(s string) string { return plain.Replace(strings.ToLower(s)) }
	s = norm(s)
	best, least := "", 3
	if len(s) > 100 {
		return ""
	}
	for _, n := range names {
		m := norm(n)
		if d := distance(s, m); d < least && (d == 0 || 3*d < len(m)) {
			best, least = n, d
		}
	}
	return best
}

// distance returns how many letters must be put in, taken out or replaced to
// make b from a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d++
			}
			diagonal = row[j+1]
			row[j+1] = min(d, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
