//go:build linux

package bpf

import (
	"bufio"
	"strings"
	"testing"

	"github.com/go-quicktest/qt"
)

// Format files of sched:sched_process_fork; comm is __data_loc in newer kernels.
const (
	fork419 = `name: sched_process_fork
ID: 311
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:char parent_comm[16];	offset:8;	size:16;	signed:1;
	field:pid_t parent_pid;	offset:24;	size:4;	signed:1;
	field:char child_comm[16];	offset:28;	size:16;	signed:1;
	field:pid_t child_pid;	offset:44;	size:4;	signed:1;

print fmt: "comm=%s pid=%d child_comm=%s child_pid=%d", REC->parent_comm, REC->parent_pid, REC->child_comm, REC->child_pid
`
	fork618 = `name: sched_process_fork
ID: 311
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:__data_loc char[] parent_comm;	offset:8;	size:4;	signed:0;
	field:pid_t parent_pid;	offset:12;	size:4;	signed:1;
	field:__data_loc char[] child_comm;	offset:16;	size:4;	signed:0;
	field:pid_t child_pid;	offset:20;	size:4;	signed:1;
`
)

func TestParseFormat(t *testing.T) {
	old, err := parseFormat(bufio.NewScanner(strings.NewReader(fork419)))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(old["child_pid"], field{offset: 44, size: 4}))
	qt.Check(t, qt.Equals(old["child_comm"], field{offset: 28, size: 16}))
	now, err := parseFormat(bufio.NewScanner(strings.NewReader(fork618)))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(now["child_pid"], field{offset: 20, size: 4}))
	qt.Check(t, qt.Equals(now["child_comm"], field{offset: 16, size: 4, dataLoc: true}))

	for _, bad := range []string{"", "no fields\n", "field:int x\n", "field:int x;\toffset:abc;\tsize:4;\n", "field:int x;\toffset:70000;\n"} {
		_, err := parseFormat(bufio.NewScanner(strings.NewReader(bad)))
		qt.Check(t, qt.ErrorIs(err, errFormat), qt.Commentf("%q", bad))
	}
}

func FuzzParseFormat(f *testing.F) {
	f.Add(fork419)
	f.Add(fork618)
	f.Add("field:;offset:;")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseFormat(bufio.NewScanner(strings.NewReader(text)))
		if err == nil && len(got) == 0 {
			t.Fatal("neither fields nor an error")
		}
	})
}

func TestParseSyscall(t *testing.T) {
	nr, args, ok := parseSyscall("0 0x3 0xc000012000 0x3e8 0x0 0x0 0x0 0x7ffd8e 0x47d5ae\n")
	qt.Check(t, qt.IsTrue(ok))
	qt.Check(t, qt.Equals(nr, 0))
	qt.Check(t, qt.Equals(args, [6]uint64{3, 0xc000012000, 0x3e8}))
	for _, none := range []string{"", "running\n", "-1 0x7ffd 0x47d5\n", "0 0x3 zz 0x0 0x0 0x0 0x0 0x0 0x0", "0 0x3"} {
		_, _, ok := parseSyscall(none)
		qt.Check(t, qt.IsFalse(ok), qt.Commentf("%q", none))
	}
}

func FuzzParseSyscall(f *testing.F) {
	f.Add("0 0x3 0xc000012000 0x3e8 0x0 0x0 0x0 0x7ffd8e 0x47d5ae\n")
	f.Add("running\n")
	f.Fuzz(func(t *testing.T, line string) {
		if nr, _, ok := parseSyscall(line); ok && nr < 0 {
			t.Fatal(nr)
		}
	})
}

func TestSequence(t *testing.T) {
	s := newSequence()
	check := func(cpu uint32, p Probe, seq uint32, ktime uint64, lost uint32, since uint64) {
		t.Helper()
		gap, at := s.lost(cpu, p, seq, ktime)
		qt.Check(t, qt.Equals(gap, lost))
		qt.Check(t, qt.Equals(at, since))
	}
	check(0, Stream, 0, 100, 0, 0)
	check(0, Stream, 1, 101, 0, 100)
	check(1, Stream, 2, 102, 2, 0) // the first two of another CPU
	check(0, Process, 0, 103, 0, 0)
	check(0, Stream, 7, 104, 5, 101)
	s.next[0][Stream-1].seq = 1<<32 - 1
	check(0, Stream, 1, 105, 2, 104) // it wraps
}

// What a record says of itself is not believed.
func TestTakeRefusesNonsense(t *testing.T) {
	s := &Session{seq: newSequence()}
	var r Record
	for _, raw := range [][]byte{
		nil, make([]byte, hdrSize-1), make([]byte, hdrSize), // size 0
		append(make([]byte, 16), append([]byte{0xff, 0xff, 0, 0}, make([]byte, 64)...)...), // larger than it is
	} {
		qt.Check(t, qt.IsFalse(s.take(&r, raw)))
	}
	qt.Check(t, qt.Equals(s.userLost[Stream-1][lossRecord].Load(), 4))
}
