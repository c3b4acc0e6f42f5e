package capture

import (
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

const fds = `xapi=100 xenopsd-xc=200 message-switch=300
100 total 0
100 lrwx------ 1 root root 64 Nov 22 12:21 9 -> socket:[704721]
100 l-wx------ 1 root root 64 Nov 22 12:21 251 -> pipe:[702357]
100 3 -> socket:[55]
100 tid 100 xapi
100 tid 101 xapi
200 tid 200
300 tid 300 message-switch
`

func convert(t *testing.T, text string) string {
	t.Helper()
	procs, err := ParseProcesses([]byte(fds))
	qt.Assert(t, qt.IsNil(err))
	records, skipped, err := strace.ReadAll(strings.NewReader(text))
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.Equals(skipped, 0))
	EstimateEnds(records)
	s := &script{events: Convert(records, procs).Events}
	return s.trace()
}

func TestConvertRequest(t *testing.T) {
	qt.Assert(t, qt.Equals(convert(t, `101 1.000100 accept4(5<UNIX-STREAM:[7]>, {sa_family=AF_UNIX}, [112 => 2], SOCK_CLOEXEC) = 18<UNIX-STREAM:[8->9,"/var/lib/xcp/xapi"]> <0.000010>
101 1.000200 clone3({flags=CLONE_VM|CLONE_THREAD} <unfinished ...>
102 1.000210 sendto(4<UNIX:[6]>, "<175>Nov 22 12:23:14 xapi: hello", 32, MSG_NOSIGNAL, NULL, 0) = 32 <0.000010>
101 1.000220 <... clone3 resumed> => {parent_tid=[102]}, 88) = 102
102 1.000300 read(18<UNIX-STREAM:[8->9,"/var/lib/xcp/xapi"]>, "GET /x", 6) = 6 <0.000010>
102 1.000400 read(18<UNIX-STREAM:[8->9,"/var/lib/xcp/xapi"]>,  <unfinished ...>
300 1.000450 read(7<UNIX-STREAM:[1]>, "not a target", 4096) = 12 <0.000010>
102 1.000500 <... read resumed>" H\r\n\r\n", 12) = 6
102 1.000600 write(18<UNIX-STREAM:[8->9,"/var/lib/xcp/xapi"]>, "ok", 2) = 2 <0.000010>
102 1.000700 close(18<UNIX-STREAM:[8->9,"/var/lib/xcp/xapi"]>) = 0 <0.000010>
102 1.000800 exit(0)     = ?
102 1.000900 +++ exited with 0 +++
`), `open 18 born 1000110000 how 2
fork 100/102 thread
log 32B "<175>Nov 22 12:23:14 xapi: hello"
in 18 [1000310000-1000500000] at 1000500000 12B/2 "GET /x H\r\n\r\n"
out 18 [1000600000-1000610000] at 1000700000 2B/1 "ok"
close 18 born 1000110000
exit 100/102 0 nocpu
`))
}

func TestConvertSeededSocket(t *testing.T) {
	// Socket 55 is never used: what it is stays unknown.
	qt.Assert(t, qt.Equals(convert(t, `100 2.000000 write(9<UNIX-STREAM:[704721]>, "GET /ack/q/1 HTTP/1.1\r\n\r\n", 25) = 25
100 2.000100 read(9<UNIX-STREAM:[704721]>, "HTTP/1.1 200 OK\r\n\r\n", 65536) = 19
`), `open 9 born 1999000000 how 1
out 9 [2000000000-2000010000] at 2000010001 25B/1 "GET /ack/q/1 HTTP/1.1\r\n\r\n"
in 9 [2000110000-2000110000] at 2000110000 19B/1 "HTTP/1.1 200 OK\r\n\r\n"
`))
}

func TestConvertChild(t *testing.T) {
	qt.Assert(t, qt.Equals(convert(t, `200 3.000000 vfork( <unfinished ...>
201 3.000100 execve("/usr/libexec/xapi/vfork_helper", ["vfork_helper", "--", "/bin/true"], 0x7f50 /* 3 vars */) = -1 ENOENT (No such file or directory)
201 3.000200 execve("/usr/libexec/xapi/vfork_helper", ["vfork_helper", "--", "/bin/true"], 0x7f50 /* 3 vars */) = 0
201 3.000300 write(4<UNIX:[6]>, "<1>from a child", 15) = 15
200 3.000400 <... vfork resumed>) = 201
201 3.000500 exit_group(127) = ?
201 3.000600 +++ exited with 127 +++
`), `fork 201/201
exec vfork_helper
exit 201/201 32512 leader nocpu
`))
}

func TestEstimateEnds(t *testing.T) {
	records, _, err := strace.ReadAll(strings.NewReader(`1 1.000000 read(3<UNIX-STREAM:[1]>, "POST /", 6) = 6
1 1.005000 read(3<UNIX-STREAM:[1]>, "abcd", 4) = 4
1 1.006000 write(3<UNIX-STREAM:[1]>, "abcd", 4) = 4 <0.003000>
1 1.010000 read(3<UNIX-STREAM:[1]>, "a", 1) = 1
1 1.010004 read(3<UNIX-STREAM:[1]>, "a", 1) = 1
`))
	qt.Assert(t, qt.IsNil(err))
	EstimateEnds(records)
	var ends []int64
	for _, r := range records {
		if r.Kind == strace.Exit {
			ends = append(ends, r.Call.End-1e9)
			qt.Check(t, qt.Equals(r.Time, r.Call.End))
		}
	}
	// It waited for the client; it did not; as recorded; no longer than to the next line; the last line.
	qt.Assert(t, qt.DeepEquals(ends, []int64{4990000, 5010000, 9000000, 10004000, 10014000}))
}

func TestMask(t *testing.T) {
	m := &Mask{tasks: map[string]bool{"b7ac34fc0662": true}}
	for in, want := range map[string]string{
		"OpaqueRef:b7ac34fc-0662-2faa-40ad-d5aa29523192":  "OpaqueRef:b7ac34fc-0662-xxxx-xxxx-xxxxxxxxxxxx",
		"(OpaqueRef:e5ca2124-6464-2f4a-4441-58e7653ec2c7": "(OpaqueRef:xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx",
		"OpaqueRef:NULL": "OpaqueRef:NULL",
		"<methodName>session.login_with_password</methodName><value><string>root</string></value><value><string>secret</string></value></methodCall>": "<methodName>session.login_with_password</methodName><value><string>xxxx</string></value><value><string>xxxxxx</string></value></methodCall>",
		`{"method": "session.login_with_password", "params": ["root", "x y"], "id":1}`:                                                                `{"method": "session.login_with_password", "params": ["xxxx", "xxx"], "id":1}`,
		"vm-list\nusername=root\npassword=pw\n":                        "vm-list\nusername=xxxx\npassword=xx\n",
		"GET / HTTP/1.1\r\nCookie: session_id=a; b\r\nhost: h\r\n\r\n": "GET / HTTP/1.1\r\nCookie: xxxxxxxxxxxxxxx\r\nhost: h\r\n\r\n",
	} {
		b := []byte(in)
		m.Bytes(b)
		qt.Check(t, qt.Equals(string(b), want))
	}
}

func FuzzConvert(f *testing.F) {
	f.Add([]byte("100 1.0 read(9<UNIX-STREAM:[704721]>, \"x\", 65536) = 1\n100 2.0 read(9<UNIX-STREAM:[704721]>, \"x\", 4) = 99999999\n"))
	f.Add([]byte("101 1.0 accept4(5<UNIX-STREAM:[7]>, NULL, NULL, 0) = 18<UNIX-STREAM:[8->9]>\n101 2.0 write(18<UNIX-STREAM:[8]>, \"abc\", -5) = 3\n101 3.0 close(18<UNIX-STREAM:[8]>) = 0\n"))
	f.Add([]byte("100 1.0 vfork() = 7\n7 2.0 execve(\"/a/b\", [\"c\"]) = 0\n7 3.0 +++ killed by SIGKILL +++\n"))
	procs, err := ParseProcesses([]byte(fds))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		records, _, err := strace.ReadAll(strings.NewReader(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		EstimateEnds(records)
		last := int64(-1 << 62)
		for _, e := range Convert(records, procs).Events {
			if int64(e.Time) <= last {
				t.Fatalf("%d after %d", e.Time, last)
			}
			last = int64(e.Time)
			if uint64(len(e.Head)+len(e.Tail)) > max(e.Bytes, 0) || len(e.Head) > headSwitch || len(e.Tail) > tailBytes {
				t.Fatalf("%+v", e)
			}
		}
	})
}
