package redact

// islands keeps debug_info and dbg in text whose place in its message is not
// known: the end of a body, or a later piece of it. All else stays masked.
func (r *Redactor) islands(i, end int) {
	for i < end {
		switch r.c.src[i] {
		case '"':
			i = r.jsonIsland(i, end)
		case '<':
			i = r.xmlIsland(i, end)
		default:
			i++
		}
	}
}

var debugNames = []string{"debug_info", "dbg"}

// jsonIsland keeps "debug_info":"…" if its first quote is at i, at any level
// of JSON within JSON. It returns where to go on.
func (r *Redactor) jsonIsland(i, end int) int {
	c := &r.c
	run := 0
	for run < 15 && i-run > 0 && c.src[i-run-1] == '\\' {
		run++
	}
	d := document{r: r, c: c, end: end}
	for 1<<d.level-1 < run {
		d.level++
	}
	if 1<<d.level-1 != run {
		return i + 1
	}
	for _, name := range debugNames {
		if !c.at(i+1, name) || i+1+len(name) > end {
			continue
		}
		colon := d.quote(i + 1 + len(name))
		if colon < 0 {
			continue
		}
		v := c.spaces(colon, end)
		if v >= end || c.src[v] != ':' {
			continue
		}
		v = c.spaces(v+1, end)
		if d.quote(v) < 0 {
			continue
		}
		c.keep(i-run, v)
		if next := d.text(v, keepDebug); next > 0 {
			return next
		}
		return end
	}
	return i + 1
}

// xmlIsland keeps <name>debug_info</name><value>…</value> if it starts at i.
func (r *Redactor) xmlIsland(i, end int) int {
	c := &r.c
	const open, shut = "<name>", "</name>"
	if !c.at(i, open) {
		return i + 1
	}
	for _, name := range debugNames {
		j := i + len(open)
		if !c.at(j, name) || !c.at(j+len(name), shut) {
			continue
		}
		j = c.spaces(j+len(name)+len(shut), end)
		if !c.at(j, "<value>") {
			continue
		}
		j += len("<value>")
		if c.at(j, "<string>") {
			j += len("<string>")
		}
		if j > end {
			continue
		}
		stop := c.index(j, end, '<')
		cut := stop < 0
		if cut {
			stop = end
		}
		c.keep(i, j)
		r.xmlValue(j, stop, cut, keepDebug)
		return stop
	}
	return i + 1
}
