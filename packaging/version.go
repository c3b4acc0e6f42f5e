package packaging

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

var (
	tagged   = regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)+)(?:-([0-9A-Za-z.]+))?(?:-([0-9]+)-(g[0-9a-f]+))?$`)
	untagged = regexp.MustCompile(`^([0-9a-f]{7,40}|devel)$`) // a hash; outside a repository
)

// Version maps what `git describe --tags --always --dirty` says to a version that
// rpm 4.11 and dpkg allow and sort alike: a version before its release as 1.2.0~rc1,
// commits after it as 1.2.0+5.gabc. What has no tag sorts before every version, by
// the time of the commit.
func Version(describe string, commit time.Time) (string, error) {
	words, isDirty := strings.CutSuffix(describe, "-dirty")
	v, mark := "", "+"
	if m := tagged.FindStringSubmatch(words); m != nil {
		v = m[1]
		if m[2] != "" {
			v += "~" + m[2]
		}
		if m[3] != "" {
			v, mark = v+"+"+m[3]+"."+m[4], "."
		}
	} else if untagged.MatchString(words) {
		v, mark = "0~"+commit.UTC().Format("20060102.150405")+".g"+words, "."
	} else {
		return "", fmt.Errorf("version %q is neither a tag such as v1.2.0 or v1.2.0-rc1, as git describe shows it, nor a commit", describe)
	}
	if isDirty {
		v += mark + "dirty"
	}
	return v, nil
}
