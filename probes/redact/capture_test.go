package redact

import (
	"bufio"
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/event"
)

var captures = flag.String("captures", "testdata", "folder of *.strace files (strace -f -ttt -yy -s 65536) to run through the redactor")

var (
	callLine   = regexp.MustCompile(`^(\d+) +[\d.]+ (read|write|sendto|recvfrom)\(\d+<[^:]*:\[(\d+)[^"]*(?:"[^"]*")?\]?>, "((?:[^"\\]|\\.)*)"`)
	startLine  = regexp.MustCompile(`^(\d+) +[\d.]+ (read|recvfrom)\(\d+<[^:]*:\[(\d+)[^,]*(?:,"[^"]*")?\]?>,  <unfinished`)
	resumeLine = regexp.MustCompile(`^(\d+) +[\d.]+ <\.\.\. (read|recvfrom) resumed>"((?:[^"\\]|\\.)*)"`)
	fullRef    = regexp.MustCompile(`OpaqueRef:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]`)
)

// pieceOf is what one system call moved; fd is the inode of the socket.
type pieceOf struct {
	fd   int
	dir  event.Dir
	log  bool
	text []byte
}

// pieces reads the stream pieces and log lines of one recording. They come as
// single calls, finer than the kernel side makes events.
func pieces(t testing.TB, file string) []pieceOf {
	f, err := os.Open(file)
	qt.Assert(t, qt.IsNil(err))
	defer f.Close()
	open := map[string]pieceOf{}
	var out []pieceOf
	add := func(p pieceOf, text string) {
		text = strings.ReplaceAll(text, `\0`, `\x00`)
		s, err := strconv.Unquote(`"` + text + `"`)
		if err != nil {
			return // octal escapes of binary data
		}
		p.text = []byte(s)
		out = append(out, p)
	}
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		line := in.Text()
		if m := callLine.FindStringSubmatch(line); m != nil {
			fd, _ := strconv.Atoi(m[3])
			p := pieceOf{fd: fd, dir: event.In, log: strings.HasPrefix(m[4], "<1") && m[2] == "sendto"}
			if m[2] == "write" || m[2] == "sendto" {
				p.dir = event.Out
			}
			add(p, m[4])
		} else if m := startLine.FindStringSubmatch(line); m != nil {
			fd, _ := strconv.Atoi(m[3])
			open[m[1]] = pieceOf{fd: fd, dir: event.In}
		} else if m := resumeLine.FindStringSubmatch(line); m != nil {
			if p, ok := open[m[1]]; ok {
				delete(open, m[1])
				add(p, m[3])
			}
		}
	}
	qt.Assert(t, qt.IsNil(in.Err()))
	return out
}

// gather makes events of pieces: those of one direction that follow each other
// on an fd, up to a blank line.
func gather(ps []pieceOf) []*event.Event {
	var out []*event.Event
	last := map[int]*event.Event{}
	for _, p := range ps {
		if p.log {
			out = append(out, &event.Event{Kind: event.KindLog, Head: bytes.Clone(p.text), Bytes: uint64(len(p.text))})
			continue
		}
		prev := last[p.fd]
		if prev != nil && prev.Dir == p.dir && !bytes.HasSuffix(prev.Head, []byte("\r\n\r\n")) && len(prev.Head)+len(p.text) <= 1024 && len(p.text) <= 64 {
			prev.Head = append(prev.Head, p.text...)
			prev.Bytes = uint64(len(prev.Head))
			continue
		}
		ev := &event.Event{Kind: event.KindData, Dir: p.dir, Conn: event.Conn{TGID: 1, FD: int32(p.fd)}, Head: bytes.Clone(p.text), Bytes: uint64(len(p.text))}
		if prev != nil && prev.Dir == p.dir {
			ev.Flags = event.FlagMore
		}
		last[p.fd] = ev
		out = append(out, ev)
	}
	return out
}

// TestCaptures runs recordings of the real toolstack through the redactor.
func TestCaptures(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(*captures, "*.strace"))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.IsTrue(len(files) > 0))
	for _, file := range files {
		if strings.Contains(file, "tapdisk") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			evs := gather(pieces(t, file))
			r := New(0)
			var before, after bytes.Buffer
			for _, ev := range evs {
				before.Write(ev.Head)
				r.Event(ev)
				after.Write(ev.Head)
			}
			a, b := after.Bytes(), before.Bytes()
			qt.Assert(t, qt.Equals(len(a), len(b)))
			if m := fullRef.Find(a); m != nil {
				t.Errorf("a reference survived: %s", m)
			}
			for _, secret := range []string{"password=null", "<string>x</string>", `"root", "x"`, "vm-257", "MS_VM_CERT"} {
				qt.Check(t, qt.IsFalse(bytes.Contains(a, []byte(secret))), qt.Commentf(secret))
			}
			// What correlation needs is there as often as before.
			for _, need := range []string{
				"<methodName>", "</methodName>", `"method":"VM.start"`, `\"method\":\"VM.start\"`, `"debug_info":"`, `\"debug_info\":\"`,
				`"traceparent`, "traceparent: ", "traceparent\\\\\\\":\\\\\\\"00-", "HTTP/1.1 200 OK", "POST /request/", "POST /response/", `"kind":["Request"`,
				`"kind":["Response"`, "Queue.push [\"VM_start\",", "Performing: [\"VM_create\",", " completed; duration = ", `"message":"HANDLE_INVALID"`, "vm-list",
				"content-length: ", "<name>Status</name><value>Success</value>", "|Async.VM.hard_shutdown R:", "created by task D:", "POST /cli HTTP/1.0", "spawning a new thread",
			} {
				want, got := bytes.Count(b, []byte(need)), bytes.Count(a, []byte(need))
				if need == `"traceparent` || need == "traceparent: " || need == "vm-list" || need == "content-length: " {
					qt.Check(t, qt.IsTrue(got > 0 || want == 0), qt.Commentf("%s: %d of %d", need, got, want))
					continue
				}
				qt.Check(t, qt.Equals(got, want), qt.Commentf(need))
			}
			tasks := regexp.MustCompile(`OpaqueRef:[0-9a-f]{8}-[0-9a-f]{4}\*`).FindAll(a, -1)
			t.Logf("%d events, %d bytes, %.0f%% masked, %d task references", len(evs), len(a), 100*float64(bytes.Count(a, []byte{Mask}))/float64(len(a)), len(tasks))
			if bytes.Contains(b, []byte("<methodName>Async.")) {
				qt.Check(t, qt.IsTrue(len(tasks) > 0))
			}
		})
	}
}
