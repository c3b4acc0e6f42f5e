//go:build linux

package bpf

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// The buckets lie side by side, and none is wider than a sixteenth of what it holds.
func TestDiskBuckets(t *testing.T) {
	for i := range diskBuckets {
		from, to := DiskBucket(i)
		qt.Assert(t, qt.Equals(bucketOf(from), i))
		qt.Assert(t, qt.Equals(bucketOf(to-1), i))
		if i >= diskSub {
			qt.Assert(t, qt.IsTrue(to-from <= from/diskSub), qt.Commentf("bucket %d", i))
		}
		if i > 0 {
			_, before := DiskBucket(i - 1)
			qt.Assert(t, qt.Equals(before, from))
		}
	}
	qt.Check(t, qt.Equals(bucketOf(math.MaxInt64), diskBuckets-1))
	from, _ := DiskBucket(diskBuckets - 1)
	qt.Check(t, qt.IsTrue(from > time.Minute))
}

func TestCommWords(t *testing.T) {
	comm, mask := commWords("5.xvda-")
	qt.Check(t, qt.Equals(comm, [2]uint64{0x002d616476782e35}))
	qt.Check(t, qt.Equals(mask, [2]uint64{0x00ffffffffffffff}))
	comm, mask = commWords("12345.xvdaaaaaaaaaa") // the kernel has 15 bytes of it
	qt.Check(t, qt.Equals(comm[1], 0x0061616161616164))
	qt.Check(t, qt.Equals(mask, [2]uint64{math.MaxUint64, math.MaxUint64 >> 8}))
}

// Formats of the block events that differ: of Linux 4.19 and of 6.18, cut to the fields.
var blockFormats = map[string][2]string{
	"block_bio_queue":    {"dev 8 4,sector 16 8,nr_sector 24 4,rwbs[8] 28 8,comm[16] 36 16", "dev 8 4,sector 16 8,nr_sector 24 4,rwbs[10] 28 10,comm[16] 38 16"},
	"block_bio_complete": {"dev 8 4,sector 16 8,nr_sector 24 4,error 28 4,rwbs[8] 32 8", "dev 8 4,sector 16 8,nr_sector 24 4,error 28 4,rwbs[10] 32 10"},
	"block_split":        {"dev 8 4,sector 16 8,new_sector 24 8,rwbs[8] 32 8,comm[16] 40 16", "dev 8 4,sector 16 8,new_sector 24 8,rwbs[10] 32 10,comm[16] 42 16"},
	"block_rq_issue":     {"dev 8 4,sector 16 8,nr_sector 24 4,bytes 28 4,rwbs[8] 32 8", "dev 8 4,sector 16 8,nr_sector 24 4,bytes 28 4,ioprio 32 2,rwbs[10] 34 10"},
	"block_rq_complete":  {"dev 8 4,sector 16 8,nr_sector 24 4,error 28 4,rwbs[8] 32 8", "dev 8 4,sector 16 8,nr_sector 24 4,error 28 4,ioprio 32 2,rwbs[10] 34 10"},
}

// tracefsOfBlock has the format files of the block events; change edits them.
func tracefsOfBlock(t *testing.T, which int, change func(event, text string) string) string {
	t.Helper()
	dir := t.TempDir()
	for event, text := range blockFormats {
		at := filepath.Join(dir, "events", "block", event)
		qt.Assert(t, qt.IsNil(os.MkdirAll(at, 0o755)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "format"), []byte(formatFile(change(event, text[which]))), 0o644)))
		qt.Assert(t, qt.IsNil(os.WriteFile(filepath.Join(at, "id"), []byte("1\n"), 0o644)))
	}
	return dir
}

// formatFile makes a format file of "name offset size,…".
func formatFile(fields string) string {
	out := "name: x\nID: 1\nformat:\n"
	for f := range strings.SplitSeq(fields, ",") {
		w := strings.Fields(f)
		out += fmt.Sprintf("\tfield:unsigned int %s;\toffset:%s;\tsize:%s;\tsigned:0;\n", w[0], w[1], w[2])
	}
	return out
}

func TestBlockConf(t *testing.T) {
	same := func(_, text string) string { return text }
	all := func(way) error { return nil }
	old, err := readBlockConf(tracefsOfBlock(t, 0, same))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(old, blockConf{Issue: 32, Done: 32}))
	now, err := readBlockConf(tracefsOfBlock(t, 1, same))
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.Equals(now, blockConf{Issue: 34, Done: 34}))

	// What is not where the programs look for it is refused, and the other probes run.
	for event := range blockFormats {
		for _, field := range []string{"dev 8", "sector 16", "rwbs[8] "} {
			k := &Kernel{hooks: map[Probe][]found{Stream: {{hook: hooks[Stream][0]}}}}
			_, err := k.findDiskHooks(tracefsOfBlock(t, 0, func(e, text string) string {
				if e != event {
					return text
				}
				return strings.Replace(text, field, "other 12", 1)
			}), all)
			if field == "rwbs[8] " && err == nil {
				t.Errorf("%s without rwbs is taken", event)
			}
			qt.Check(t, qt.ErrorIs(err, errFormat), qt.Commentf("%s without %s", event, field))
			qt.Check(t, qt.HasLen(k.hooks[Disk], 0))
			qt.Check(t, qt.HasLen(k.hooks[Stream], 1))
		}
	}
	k := &Kernel{hooks: map[Probe][]found{}}
	tracefs := tracefsOfBlock(t, 1, same)
	_, err = k.findDiskHooks(tracefs, all)
	qt.Assert(t, qt.IsNil(err))
	qt.Check(t, qt.HasLen(k.hooks[Disk], len(hooks[Disk])))
	qt.Assert(t, qt.IsNil(os.RemoveAll(filepath.Join(tracefs, "events", "block", "block_split"))))
	_, err = k.findDiskHooks(tracefs, all)
	qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
	qt.Check(t, qt.ErrorMatches((&Session{kernel: &Kernel{}}).beginDisks(), ".*lacks its tracepoints.*"))
}
