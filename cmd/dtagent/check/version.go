package check

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// executable is what is known of a program's file.
type executable struct {
	version, from string
	buildID       string
}

// versions finds out the versions of programs without running them. It asks once
// for each file. It is used by one goroutine.
type versions struct {
	xapi string                                        // that the running xapi tells of itself, "" if it was not asked
	rpm  func(ctx context.Context, path string) string // package of a file with version and release, "" if not known; nil: not asked
	seen map[fileID]executable
}

// fileID tells files apart, also those that have no name any more.
type fileID struct{ dev, ino uint64 }

func newVersions(rpm func(context.Context, string) string) *versions {
	return &versions{rpm: rpm, seen: map[fileID]executable{}}
}

// of returns what is known of the program of a process: link is its /proc/PID/exe,
// path the name of the file, which may be another one now. Who knows best goes first.
func (v *versions) of(ctx context.Context, program, link, path string, outdated bool) executable {
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil {
		return executable{}
	}
	id := fileID{st.Dev, st.Ino}
	e, ok := v.seen[id]
	if !ok {
		e = readExecutable(link)
		if e.version == "" && !outdated { // the package has the file that is on disk
			f := v.file(ctx, path)
			e.version, e.from = f.version, f.from
		}
		v.seen[id] = e
	}
	if program == "xapi" && v.xapi != "" {
		e.version, e.from = v.xapi, "xapi"
	}
	return e
}

// file returns the version of the package that a file or directory is of.
func (v *versions) file(ctx context.Context, path string) (e executable) {
	if v.rpm == nil {
		return e
	}
	if e.version = v.rpm(ctx, path); e.version != "" {
		e.from = "rpm"
	}
	return e
}

// maxExecutable bounds what is searched of a file: xapi has some 60 MB.
const maxExecutable = 256 << 20

// readExecutable reads build-id and version of a program.
func readExecutable(path string) (e executable) {
	f, err := os.Open(path)
	if err != nil {
		return e
	}
	defer f.Close()
	e.buildID = elfBuildID(f)
	if e.version = duneVersion(io.LimitReader(f, maxExecutable)); e.version != "" {
		e.from = "binary"
	}
	return e
}

// maxNote bounds a note section.
const maxNote = 64 << 10

// elfBuildID returns the NT_GNU_BUILD_ID of a program, "" if it has none.
func elfBuildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	s := f.Section(".note.gnu.build-id")
	if s == nil || s.Type != elf.SHT_NOTE || s.Size < 16 || s.Size > maxNote {
		return ""
	}
	b := make([]byte, s.Size)
	if _, err := io.ReadFull(s.Open(), b); err != nil {
		return ""
	}
	name, desc := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:])
	at := 12 + (uint64(name)+3)&^3
	if at+uint64(desc) > uint64(len(b)) {
		return ""
	}
	return hex.EncodeToString(b[at : at+uint64(desc)])
}

// dune, which builds the toolstack, writes a program's version into the place that
// dune-build-info has for it: "=8:v25.33.1", filled up with blanks to 64 bytes
// (artifact_substitution.ml of dune). There is one for each part of the program.
const duneField = 64

// duneVersion returns the version in a program, "" if it has none, or several that
// differ.
func duneVersion(r io.Reader) string {
	const chunk = 1 << 20
	buf := make([]byte, 0, chunk+duneField)
	var found string
	for {
		n, err := io.ReadFull(r, buf[len(buf):chunk+len(buf)])
		buf = buf[:len(buf)+n]
		for rest := buf; ; rest = rest[1:] {
			at := bytes.IndexByte(rest, '=')
			if at < 0 || len(rest)-at < duneField {
				break
			}
			rest = rest[at:]
			v := duneFieldVersion(rest[:duneField])
			if v != "" && found != "" && found != v {
				return ""
			}
			found = cmp.Or(v, found)
		}
		if err != nil {
			return found
		}
		// One that stands across the end is seen whole with the next piece.
		keep := min(len(buf), duneField-1)
		buf = append(buf[:0], buf[len(buf)-keep:]...)
	}
}

var version = regexp.MustCompile(`^v?[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*$`)

// duneFieldVersion returns the version in a field.
func duneFieldVersion(b []byte) string {
	digits, rest, ok := bytes.Cut(bytes.TrimRight(b[1:], " "), []byte{':'})
	if !ok || len(digits) > 2 {
		return ""
	}
	if n, err := strconv.ParseUint(string(digits), 10, 8); err != nil || n != uint64(len(rest)) || !version.Match(rest) {
		return ""
	}
	return strings.TrimPrefix(string(rest), "v")
}

// rpmTimeout is for one question to the package database, which is on disk.
const rpmTimeout = 5 * time.Second

// findRPM returns what asks the host's package database, nil if it has none.
func findRPM() func(context.Context, string) string {
	for _, tool := range []string{"/usr/bin/rpm", "/bin/rpm"} {
		if info, err := os.Stat(tool); err == nil && info.Mode().IsRegular() {
			return func(ctx context.Context, path string) string { return askRPM(ctx, tool, path) }
		}
	}
	return nil
}

func askRPM(ctx context.Context, tool, path string) string {
	ctx, cancel := context.WithTimeout(ctx, rpmTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, "-qf", "--qf", `%{NAME}-%{VERSION}-%{RELEASE}\n`, path)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil { // not of a package; the words are on standard output
		return ""
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if len(first) > 200 || strings.ContainsFunc(first, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return first
}
