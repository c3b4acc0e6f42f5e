package strace

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

func read(t *testing.T, text string) []Record {
	t.Helper()
	out, skipped, err := ReadAll(strings.NewReader(text))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(skipped, 0))
	return out
}

func TestWholeCall(t *testing.T) {
	out := read(t, `8596  1795350194.889597 read(18<UNIX-STREAM:[709749->709747,"/var/lib/xcp/xapi"]>, "st\r\n", 4) = 4`+"\n")
	qt.Assert(t, qt.HasLen(out, 2))
	qt.Assert(t, qt.Equals(out[0].Kind, Enter))
	qt.Assert(t, qt.Equals(out[1].Kind, Exit))
	c := out[1].Call
	qt.Assert(t, qt.Equals(out[0].Call, c))
	qt.Assert(t, qt.Equals(c.TID, 8596))
	qt.Assert(t, qt.Equals(c.Name, "read"))
	qt.Assert(t, qt.Equals(c.Start, 1795350194889597000))
	qt.Assert(t, qt.Equals(c.End, 0))
	qt.Assert(t, qt.HasLen(c.Args, 3))
	fd, ok := c.Args[0].FD()
	qt.Assert(t, qt.IsTrue(ok))
	qt.Assert(t, qt.Equals(fd, FD{Num: 18, Kind: "UNIX-STREAM", Ino: 709749, Peer: 709747, Path: "/var/lib/xcp/xapi"}))
	b, cut, ok := c.Args[1].Bytes()
	qt.Assert(t, qt.IsTrue(ok))
	qt.Assert(t, qt.IsFalse(cut))
	qt.Assert(t, qt.Equals(string(b), "st\r\n"))
	qt.Assert(t, qt.Equals(c.Return, 4))
}

func TestInterruptedCalls(t *testing.T) {
	out := read(t, `7601  1795350194.927106 read(6<UNIX-STREAM:[703902]>,  <unfinished ...>
7573  1795350194.927144 write(8<UNIX-STREAM:[703907]>, "a, (b) = 3", 10 <unfinished ...>
7601  1795350194.927431 <... read resumed>"x", 65536) = 1
7573  1795350194.927501 <... write resumed>) = 10
`)
	qt.Assert(t, qt.HasLen(out, 4))
	qt.Assert(t, qt.Equals(out[0].Kind, Enter))
	qt.Assert(t, qt.Equals(out[1].Kind, Enter))
	r := out[2].Call
	qt.Assert(t, qt.Equals(r, out[0].Call))
	qt.Assert(t, qt.DeepEquals(r.Args, []Arg{"6<UNIX-STREAM:[703902]>", `"x"`, "65536"}))
	qt.Assert(t, qt.Equals(r.End, 1795350194927431000))
	w := out[3].Call
	qt.Assert(t, qt.DeepEquals(w.Args, []Arg{"8<UNIX-STREAM:[703907]>", `"a, (b) = 3"`, "10"}))
	qt.Assert(t, qt.Equals(w.Return, 10))
}

func TestResults(t *testing.T) {
	for _, test := range []struct {
		line  string
		ret   int64
		known bool
		errno string
	}{
		{`1 1.000001 read(7<UNIX-STREAM:[1]>, 0x55ef914c8200, 4096) = -1 EAGAIN (Resource temporarily unavailable)`, -1, true, "EAGAIN"},
		{`1 1.000001 exit(0)         = ?`, 0, false, ""},
		{`1 1.000001 write(3<pipe:[2]>, "=", 1) = 1 <0.000012>`, 1, true, ""},
		{`1 1.000001 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</a,b (c)>, 0) = 0x7f00`, 0x7f00, true, ""},
		{`1 1.000001 execve("/bin/x", ["/bin/x", "a, b"], 0x7f50 /* 3 vars) */) = -1 ENOENT (No such file)`, -1, true, "ENOENT"},
		{`1 1.000001 accept4(5<UNIX-STREAM:[704718]>, {sa_family=AF_UNIX}, [112 => 2], SOCK_CLOEXEC) = 18<UNIX-STREAM:[7->9,"/x"]>`, 18, true, ""},
	} {
		c := read(t, test.line)[1].Call
		qt.Check(t, qt.Equals(c.Return, test.ret), qt.Commentf(test.line))
		qt.Check(t, qt.Equals(c.Known, test.known), qt.Commentf(test.line))
		qt.Check(t, qt.Equals(c.Errno, test.errno), qt.Commentf(test.line))
	}
	c := read(t, `1 1.000001 write(3<pipe:[2]>, "=", 1) = 1 <0.000012>`)[1]
	qt.Check(t, qt.Equals(c.Time, 1000013000))
	c = read(t, `1 1.0 accept4(5<UNIX-STREAM:[704718]>, NULL, NULL, 0) = 18<UNIX-STREAM:[7->9,"/x"]> <0.5>`)[1]
	qt.Check(t, qt.Equals(c.Time, 1500000000))
	fd, _ := c.Call.Result.FD()
	qt.Check(t, qt.Equals(fd, FD{Num: 18, Kind: "UNIX-STREAM", Ino: 7, Peer: 9, Path: "/x"}))
	c = read(t, `1 1.0 execve("/bin/x", ["/bin/x", "a, b"], 0x7f50 /* 3 vars */) = 0`)[1]
	qt.Check(t, qt.DeepEquals(c.Call.Args[1].List(), []string{"/bin/x", "a, b"}))
}

func TestEndOfThreads(t *testing.T) {
	out := read(t, "5 1.0 read(3<pipe:[1]>,  <unfinished ...>\n5 2.0 +++ exited with 127 +++\n6 3.0 +++ killed by SIGKILL +++\n7 3.0 --- SIGCHLD {si_signo=SIGCHLD} ---\nstrace: Process 8 attached\n\n")
	qt.Assert(t, qt.HasLen(out, 3))
	qt.Assert(t, qt.Equals(out[1].Status, 127<<8))
	qt.Assert(t, qt.Equals(out[2].Status, 9))
}

func TestLinesNotUnderstood(t *testing.T) {
	for _, line := range []string{
		"garbage", "1", "1 ", "1 x read() = 0", "x 1.0 read() = 0", "1 1.0 read(", "1 1.0 read(\"a", "1 1.0 read(1) 5", "1 1.0 Read(1) = 5",
		"1 1.0 <... read resumed>) = 0", "1 1.0 (1) = 2", "1 1.0 +++ gone +++",
	} {
		out, skipped, err := ReadAll(strings.NewReader(line + "\n2 2.0 close(1) = 0\n"))
		qt.Check(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(skipped, 1), qt.Commentf(line))
		qt.Check(t, qt.HasLen(out, 2), qt.Commentf(line))
	}
}

func TestBytes(t *testing.T) {
	for _, test := range []struct {
		in, want string
		cut, ok  bool
	}{
		{`"a\"b\\\n\r\t\v\f"`, "a\"b\\\n\r\t\v\f", false, true},
		{`"\0\0\1\0019\33"`, "\x00\x00\x01\x019\x1b", false, true},
		{`"\x41\xff"`, "A\xff", false, true},
		{`"abc"...`, "abc", true, true},
		{`"abc`, "abc", true, false},
		{`"abc\`, "abc", true, false},
		{`0x1234`, "", false, false},
	} {
		b, cut, ok := Arg(test.in).Bytes()
		qt.Check(t, qt.Equals(string(b), test.want), qt.Commentf(test.in))
		qt.Check(t, qt.Equals(cut, test.cut), qt.Commentf(test.in))
		qt.Check(t, qt.Equals(ok, test.ok), qt.Commentf(test.in))
	}
}

func FuzzQuote(f *testing.F) {
	f.Add([]byte("\x00\x019\"\\\n\xff\x7f8"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, cut, ok := Quote(b).Bytes()
		if !ok || cut || !bytes.Equal(got, b) {
			t.Fatalf("%q becomes %s becomes %q", b, Quote(b), got)
		}
	})
}

func FuzzParser(f *testing.F) {
	f.Add([]byte("1 1.5 read(6<UNIX-STREAM:[703902]>,  <unfinished ...>\n1 2.5 <... read resumed>\"x\", 65536) = 1 <0.5>\n"))
	f.Add([]byte(`1 1.0 execve("/bin/x", ["a", "b"], 0x7f /* 3 vars */) = -1 ENOENT (No such file)`))
	f.Add([]byte(`1 1.0 clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7} => {parent_tid=[8596]}, 88) = 8596`))
	f.Add([]byte("1 1.0 +++ killed by SIGKILL +++\n1 1.0 open(AT_FDCWD<>, \"/\") = 3</a>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _, err := ReadAll(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range out {
			if r.Kind != Death && r.Call == nil || r.Kind == Death && r.Call != nil {
				t.Fatalf("%+v", r)
			}
			if r.Call == nil {
				continue
			}
			for _, a := range append(r.Call.Args, r.Call.Result) {
				a.FD()
				a.Int()
				a.List()
				if got, _, ok := a.Bytes(); ok && len(got) > len(a) {
					t.Fatalf("%q is longer than %s", got, a)
				}
			}
		}
	})
}
