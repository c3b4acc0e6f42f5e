package recordings

import (
	"fmt"
	"strings"

	"github.com/xenserver/dtagent/cmd/dtagent/tree"
	"github.com/xenserver/dtagent/cmd/dtagent/zipkin"
)

// shape is what the trees of spans look like, without anything that depends on the
// machine or on time: a line for every span with its name, service, kind, link
// method, error, and why it is incomplete. A root that has a parent elsewhere says
// so.
func shape(spans []zipkin.Span) string {
	var b strings.Builder
	for _, t := range tree.Build(spans) {
		fmt.Fprintf(&b, "trace of %d spans\n", t.Spans)
		for _, r := range t.Roots {
			write(&b, r, 1)
		}
	}
	return b.String()
}

func write(b *strings.Builder, n *tree.Node, depth int) {
	fmt.Fprintf(b, "%s%s  %s %s %s", strings.Repeat("  ", depth), n.Name, n.Service(), strings.ToLower(n.Kind), n.Link())
	if depth == 1 && n.ParentID != "" {
		b.WriteString(" below a span of the caller")
	}
	if e := n.Error(); e != "" {
		fmt.Fprintf(b, " error %s", e)
	}
	if c := n.Incomplete(); c != "" {
		fmt.Fprintf(b, " incomplete: %s", c)
	}
	b.WriteByte('\n')
	for _, c := range n.Children {
		write(b, c, depth+1)
	}
}
