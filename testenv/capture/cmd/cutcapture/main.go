// Command cutcapture makes fixtures of recordings:
//
//	cutcapture RECORDINGS FIXTURES
//
// For every NAME.strace.zst in RECORDINGS whose processes (NAME.fds) include
// xapi it writes NAME.strace.zst, NAME.fds, NAME.client and
// NAME.native.ndjson.zst into FIXTURES, cut to what package capture reads and
// without secrets.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/xenserver/dtagent/testenv/capture"
	"github.com/xenserver/dtagent/testenv/capture/strace"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cutcapture RECORDINGS FIXTURES")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "cutcapture:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.strace.zst"))
	if err != nil {
		return err
	}
	n := 0
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".strace.zst")
		if _, err := os.Stat(filepath.Join(from, name+".fds")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := cut(from, to, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		n++
	}
	if n == 0 {
		return fmt.Errorf("no recording with .strace.zst and .fds in %s", from)
	}
	return nil
}

func cut(from, to, name string) error {
	text, err := unpack(filepath.Join(from, name+".strace.zst"))
	if err != nil {
		return err
	}
	records, skipped, err := strace.ReadAll(bytes.NewReader(text))
	if err != nil {
		return err
	}
	fds, err := os.ReadFile(filepath.Join(from, name+".fds"))
	if err != nil {
		return err
	}
	procs, err := capture.ParseProcesses(fds)
	if err != nil {
		return err
	}
	cutStrings := capture.CutStrings(records)
	var out bytes.Buffer
	mask, err := capture.Cut(&out, records, procs)
	if err != nil {
		return err
	}
	if err := pack(filepath.Join(to, name+".strace.zst"), out.Bytes()); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, name+".fds"), procs.Targets(), 0o644); err != nil {
		return err
	}
	client, err := os.ReadFile(filepath.Join(from, name+".client"))
	if err != nil {
		return err
	}
	mask.Bytes(client)
	if err := os.WriteFile(filepath.Join(to, name+".client"), client, 0o644); err != nil {
		return err
	}
	spans, err := native(from, to, name)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d records (%d lines not understood), %d strings of sockets cut by strace, %d bytes in the fixture, %d native spans\n",
		name, len(records), skipped, cutStrings, out.Len(), spans)
	return nil
}

func native(from, to, name string) (int, error) {
	var all []capture.NativeSpan
	for _, daemon := range []string{"xapi", "xenopsd"} {
		text, err := unpack(filepath.Join(from, name+"."+daemon+".ndjson.zst"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		spans, err := capture.ReadNative(bytes.NewReader(text))
		if err != nil {
			return 0, err
		}
		all = append(all, spans...)
	}
	if len(all) == 0 {
		return 0, nil
	}
	kept := capture.CutNative(all)
	line, err := json.Marshal(kept)
	if err != nil {
		return 0, err
	}
	return len(kept), pack(filepath.Join(to, name+".native.ndjson.zst"), append(line, '\n'))
}

func unpack(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}

func pack(file string, b []byte) error {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	defer e.Close()
	return os.WriteFile(file, e.EncodeAll(b, nil), 0o644)
}
