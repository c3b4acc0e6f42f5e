package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Document writes the tables of what came of the kernels into a Markdown file,
// each between its two comments. What stands around them stays. It writes only
// what a whole and good run says.
func Document(file string, results []*Result) error {
	for _, r := range results {
		if !r.OK() {
			return fmt.Errorf("%s is left as it was: tests failed on %s", file, r.name())
		}
		if len(r.Ways) == 0 {
			return fmt.Errorf("%s is left as it was: no test said which ways there are to attach on %s", file, r.name())
		}
	}
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var tests bytes.Buffer
	table(&tests, results, false)
	text, err := replace(string(old), "tests", indent(tests.String()))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if text, err = replace(text, "ways", newWayTable(results).markdown()); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if text == string(old) {
		return nil
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// indent makes text a block of code.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

// replace puts text between two comments, which have to be there once.
func replace(document, name, text string) (string, error) {
	begin, end := "<!-- begin "+name+": written by make kernels -->\n", "<!-- end "+name+" -->\n"
	head, rest, ok := strings.Cut(document, begin)
	if !ok {
		return "", errors.New("has no line " + strings.TrimSpace(begin))
	}
	_, tail, ok := strings.Cut(rest, end)
	if !ok {
		return "", errors.New("has no line " + strings.TrimSpace(end) + " below it")
	}
	return head + begin + "\n" + text + "\n" + end + tail, nil
}
