package bugtool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/observer/export"
	"golang.org/x/sys/unix"
)

const host = "6f1b3a0c-1111-4222-8333-444455556666"

func record(service, name string) *export.Record {
	r := example()
	sp := *r.Span
	sp.Service, sp.Name = service, name
	return &export.Record{Span: &sp, Attributes: r.Attributes}
}

func records(n int, service string) []*export.Record {
	out := make([]*export.Record, n)
	for i := range out {
		out[i] = record(service, fmt.Sprintf("call %d", i))
	}
	return out
}

// readTree reads every span below dir as xs-trace does: .zst unpacked and
// .ndjson line by line, anything else whole; each piece must be a zipkin array.
func readTree(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fd, err := os.Open(path)
		if err != nil {
			return err
		}
		defer fd.Close()
		var in io.Reader = fd
		switch {
		case strings.HasSuffix(path, ".zst"):
			z, err := zstd.NewReader(fd)
			if err != nil {
				return err
			}
			defer z.Close()
			in = z
		case !strings.HasSuffix(path, ".ndjson"):
			return fmt.Errorf("%s would be posted whole", path)
		}
		sc := bufio.NewScanner(in) // takes lines of at most 64 KiB
		for sc.Scan() {
			if len(sc.Bytes()) == 0 {
				continue
			}
			var spans []struct {
				Name    string
				TraceID string
				ID      string
				Tags    map[string]string
			}
			if err := json.Unmarshal(sc.Bytes(), &spans); err != nil {
				return fmt.Errorf("%s: %w: %q", path, err, sc.Text())
			}
			if len(spans) == 0 {
				return fmt.Errorf("%s: empty array", path)
			}
			for _, s := range spans {
				if len(s.TraceID) != 32 || len(s.ID) != 16 {
					return fmt.Errorf("%s: ids of %+v", path, s)
				}
				names = append(names, s.Name)
			}
		}
		return sc.Err()
	})
	qt.Assert(t, qt.IsNil(err))
	return names
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	got, err := filepath.Glob(filepath.Join(dir, "*"))
	qt.Assert(t, qt.IsNil(err))
	return got
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dt", "zipkinv2", "json")
	at := time.Date(2026, 8, 21, 2, 0, 23, 123456789, time.FixedZone("", 3600))
	e := New(Options{Dir: dir, HostUUID: host, Now: func() time.Time { return at }})
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{record("xapi", "VM.start"), record("xenopsd", "VM_start"), record("xapi", "VM.stop")})))
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), []*export.Record{record("xapi", "VM.clone")})))
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Assert(t, qt.DeepEquals(list(t, dir), []string{
		filepath.Join(dir, "xapi-"+host+"-2026-08-21T01:00:23.123456-00:00.ndjson"),
		filepath.Join(dir, "xenopsd-"+host+"-2026-08-21T01:00:23.123456-00:00.ndjson"),
	}))
	for _, p := range append(list(t, dir), dir, filepath.Dir(dir)) {
		st, err := os.Stat(p)
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.Equals(st.Mode().Perm(), 0o700))
	}
	data, err := os.ReadFile(list(t, dir)[0])
	qt.Assert(t, qt.IsNil(err))
	lines := strings.Split(string(data), "\n")
	qt.Assert(t, qt.HasLen(lines, 3))
	qt.Assert(t, qt.Equals(lines[2], ""))
	order := regexp.MustCompile(`^\[\{"tags":\{"xs\.xapi\.task\.id":.*,"custom\.k":"v1"\},"annotations":\[\],"localEndpoint":\{"serviceName":"xapi"\},"kind":"SERVER","duration":46,"timestamp":\d+,"name":"VM\.start","parentId":"[0-9a-f]{16}","traceId":"[0-9a-f]{32}","id":"[0-9a-f]{16}"\},\{`)
	qt.Assert(t, qt.IsTrue(order.MatchString(lines[0])))
	qt.Assert(t, qt.HasLen(readTree(t, dir), 4))

	// A new exporter within the same microsecond opens none of the old files.
	e = New(Options{Dir: dir, HostUUID: host, Now: func() time.Time { return at }})
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), records(1, "xapi"))))
	qt.Assert(t, qt.IsNil(e.Close()))
	qt.Assert(t, qt.HasLen(list(t, dir), 3))
	again, err := os.ReadFile(list(t, dir)[0])
	qt.Assert(t, qt.IsNil(err))
	qt.Assert(t, qt.DeepEquals(again, data))
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	var rotated int64
	e := New(Options{Dir: dir, HostUUID: host, Rotated: func(n int64) { rotated += n }})
	total := 0
	for range 10 {
		qt.Assert(t, qt.IsNil(e.Export(context.Background(), records(512, "xapi"))))
		total += 512
	}
	qt.Assert(t, qt.IsNil(e.Close()))
	var packed, open int
	for _, p := range list(t, dir) {
		st, err := os.Stat(p)
		qt.Assert(t, qt.IsNil(err))
		if strings.HasSuffix(p, ".ndjson.zst") {
			packed++
			qt.Check(t, qt.Equals(st.Mode().Perm(), 0o444))
			_, err := os.Stat(strings.TrimSuffix(p, ".zst"))
			qt.Check(t, qt.ErrorIs(err, os.ErrNotExist))
			fd, _ := os.Open(p)
			z, err := zstd.NewReader(fd)
			qt.Assert(t, qt.IsNil(err))
			n, err := io.Copy(io.Discard, z)
			qt.Assert(t, qt.IsNil(err))
			qt.Check(t, qt.IsTrue(n >= 1<<20 && n < 1<<20+64<<10))
			z.Close()
			fd.Close()
		} else {
			open++
			qt.Check(t, qt.IsTrue(st.Size() < 1<<20))
		}
	}
	qt.Check(t, qt.IsTrue(packed >= 2 && open <= 1))
	qt.Check(t, qt.IsTrue(rotated >= int64(packed)<<20))
	qt.Assert(t, qt.HasLen(readTree(t, dir), total))
}

func TestDeletedFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	e := New(Options{Dir: dir})
	defer e.Close()
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), records(3, "xapi"))))
	qt.Assert(t, qt.IsNil(os.RemoveAll(dir)))
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), records(5, "xapi"))))
	qt.Assert(t, qt.HasLen(readTree(t, dir), 5))
	qt.Assert(t, qt.IsTrue(strings.Contains(list(t, dir)[0], "/xapi-localhost-")))
}

// TestDiskFull writes to a file system of 256 KiB until it is full.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs the right to mount a tmpfs: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	e := New(Options{Dir: dir, HostUUID: host})
	sent, lost := 0, 0
	for range 4 {
		batch := records(300, "xapi")
		err := e.Export(context.Background(), batch)
		if err == nil {
			sent += len(batch)
			continue
		}
		f := export.AsFailure(err, len(batch))
		qt.Assert(t, qt.ErrorIs(err, syscall.ENOSPC))
		qt.Assert(t, qt.Equals(f.Cause, export.DiskFull))
		qt.Assert(t, qt.IsFalse(f.Retry))
		lost += f.Lost
		sent += len(batch) - f.Lost
		qt.Assert(t, qt.HasLen(readTree(t, dir), sent)) // no half line
	}
	qt.Assert(t, qt.IsTrue(lost > 300 && sent > 100))
	before := list(t, dir)
	// Space again: the same file goes on.
	qt.Assert(t, qt.IsNil(unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m")))
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), records(300, "xapi"))))
	qt.Assert(t, qt.HasLen(readTree(t, dir), sent+300))
	qt.Assert(t, qt.DeepEquals(list(t, dir), before))
	qt.Assert(t, qt.IsNil(e.Close()))
}

func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	qt.Assert(t, qt.IsNil(os.WriteFile(file, nil, 0o600)))
	e := New(Options{Dir: filepath.Join(file, "json")})
	f := export.AsFailure(e.Export(context.Background(), records(7, "xapi")), 7)
	qt.Assert(t, qt.Equals(f.Lost, 7))
	qt.Assert(t, qt.Equals(f.Cause, export.WriteError))
	qt.Assert(t, qt.IsTrue(errors.Is(f, syscall.ENOTDIR)))
}

func TestManyServices(t *testing.T) {
	dir := t.TempDir()
	e := New(Options{Dir: dir})
	var batch []*export.Record
	for i := range 40 {
		batch = append(batch, record(fmt.Sprintf("../%d/évil\n", i), "x"))
	}
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), batch)))
	qt.Assert(t, qt.Equals(len(e.files), maxFiles))
	qt.Assert(t, qt.HasLen(readTree(t, dir), 40))
	for _, p := range list(t, dir) {
		qt.Check(t, qt.IsTrue(regexp.MustCompile(`^_\._[0-9]+___vil_-localhost-`).MatchString(filepath.Base(p))))
	}
	qt.Assert(t, qt.IsNil(e.Close()))
}

// TestEmpty: nothing is written before the first span, and no empty array.
func TestEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	e := New(Options{Dir: dir})
	qt.Assert(t, qt.IsNil(e.Export(context.Background(), nil)))
	qt.Assert(t, qt.IsNil(e.Close()))
	_, err := os.Stat(dir)
	qt.Assert(t, qt.ErrorIs(err, os.ErrNotExist))
}

func BenchmarkExport(b *testing.B) {
	for _, noCompress := range []bool{false, true} {
		b.Run(map[bool]string{false: "zstd", true: "plain"}[noCompress], func(b *testing.B) {
			e := New(Options{Dir: b.TempDir(), NoCompress: noCompress})
			defer e.Close()
			batch := records(512, "xapi")
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if err := e.Export(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
				n += len(batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/span")
		})
	}
}
