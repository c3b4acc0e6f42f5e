package vm

import "slices"

// Failed returns the tests that failed, if nothing else did: the guest got to its
// end, its kernel had nothing to say, and every test ran.
func (r *Result) Failed() (tests []*Test) {
	if !r.done || len(r.problems) > 0 {
		return nil
	}
	for _, t := range r.Tests {
		if t.Outcome == Failed {
			tests = append(tests, t)
		}
	}
	return tests
}

// Only returns a suite of these tests alone, whole functions, from the same build.
func (s *Suite) Only(tests []*Test) *Suite {
	only := *s
	only.Count, only.Binary = 0, nil
	for _, b := range s.Binary {
		var names []string
		for _, name := range b.Tests {
			if slices.ContainsFunc(tests, func(t *Test) bool { return t.Package == b.Path && t.Top() == name }) {
				names = append(names, name)
			}
		}
		if b.Tests = names; names != nil {
			only.Binary = append(only.Binary, b)
		}
	}
	return &only
}

// Mend takes what came of the failed tests in a second guest of the same kernel. Those
// that passed there count as passed, and say so; it returns how many. A second guest
// with any trouble mends nothing.
func (r *Result) Mend(second *Result) (mended int) {
	if !second.OK() {
		return 0
	}
	for _, t := range r.Failed() {
		if slices.ContainsFunc(second.Tests, func(s *Test) bool { return s.Package == t.Package && s.Name == t.Name }) {
			t.Outcome, t.Again = Passed, true
			mended++
		}
	}
	return mended
}
