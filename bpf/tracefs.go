//go:build linux

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tracefsDir is the place that the kernel makes for tracefs.
const tracefsDir = "/sys/kernel/tracing"

// findTracefs returns where tracefs is, and mounts it when it is nowhere. The
// detail says which it was.
func findTracefs() (dir, detail string, err error) {
	for _, d := range []string{tracefsDir, "/sys/kernel/debug/tracing"} {
		var st unix.Statfs_t
		if unix.Statfs(d, &st) == nil && (st.Type == unix.TRACEFS_MAGIC || st.Type == unix.DEBUGFS_MAGIC) {
			if _, err := os.Stat(filepath.Join(d, "events")); err == nil {
				return d, "mounted at " + d, nil
			}
		}
	}
	if err := unix.Mount("tracefs", tracefsDir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return "", "", fmt.Errorf("mount tracefs at %s: %w", tracefsDir, err)
	}
	return tracefsDir, "was not mounted; mounted at " + tracefsDir + " now", nil
}

// field is one line of a tracepoint's format file.
type field struct {
	offset, size uint32
	dataLoc      bool // the u32 at offset holds the offset (low half) and length of the string
}

// format maps a tracepoint's field names to where they are in the context.
type format map[string]field

// readFormat parses events/group/name/format below a tracefs.
func readFormat(tracefs, group, name string) (format, error) {
	f, err := os.Open(filepath.Join(tracefs, "events", group, name, "format"))
	if err != nil {
		return nil, fmt.Errorf("tracepoint %s:%s: %w", group, name, err)
	}
	defer f.Close()
	out, err := parseFormat(bufio.NewScanner(f))
	if err != nil {
		return nil, fmt.Errorf("tracepoint %s:%s: %w", group, name, err)
	}
	return out, nil
}

var errFormat = errors.New("format file is not understood")

func parseFormat(in *bufio.Scanner) (format, error) {
	out := format{}
	for in.Scan() {
		line, ok := strings.CutPrefix(strings.TrimSpace(in.Text()), "field:")
		if !ok {
			continue
		}
		// field:__data_loc char[] filename;	offset:8;	size:4;	signed:0;
		decl, rest, ok := strings.Cut(line, ";")
		if !ok {
			return nil, fmt.Errorf("%w: %q", errFormat, line)
		}
		var fd field
		for part := range strings.SplitSeq(rest, ";") {
			key, value, _ := strings.Cut(strings.TrimSpace(part), ":")
			n, err := strconv.ParseUint(value, 10, 16)
			switch key {
			case "offset":
				fd.offset = uint32(n)
			case "size":
				fd.size = uint32(n)
			default:
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%w: %q", errFormat, line)
			}
		}
		fd.dataLoc = strings.HasPrefix(decl, "__data_loc ")
		name := decl[strings.LastIndexAny(decl, " *")+1:]
		name, _, _ = strings.Cut(name, "[") // char comm[16]
		out[name] = fd
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errFormat
	}
	return out, nil
}

// readConfig asks the format files what the programs have to know, and checks what
// they take for granted.
func readConfig(tracefs string) (config, error) {
	var c config
	fork, err := readFormat(tracefs, "sched", "sched_process_fork")
	if err != nil {
		return c, err
	}
	child, ok := fork["child_pid"]
	if !ok || child.size != 4 {
		return c, fmt.Errorf("tracepoint sched:sched_process_fork: child_pid: %w", errFormat)
	}
	exec, err := readFormat(tracefs, "sched", "sched_process_exec")
	if err != nil {
		return c, err
	}
	filename, ok := exec["filename"]
	if !ok || !filename.dataLoc {
		return c, fmt.Errorf("tracepoint sched:sched_process_exec: filename: %w", errFormat)
	}
	c.ForkChild, c.ExecFilename = child.offset, filename.offset
	for _, w := range []struct {
		name, field string
		size        uint32
		to          *uint32
	}{
		{"sched_switch", "prev_state", 8, &c.SwitchState},
		{"sched_switch", "next_pid", 4, &c.SwitchNext},
		{"sched_wakeup", "pid", 4, &c.WakeupPid},
	} {
		f, err := readFormat(tracefs, "sched", w.name)
		if err != nil {
			return c, err
		}
		fd, ok := f[w.field]
		if !ok || fd.size != w.size {
			return c, fmt.Errorf("tracepoint sched:%s: %s: %w", w.name, w.field, errFormat)
		}
		*w.to = fd.offset
	}

	enter, err := readFormat(tracefs, "syscalls", "sys_enter_read")
	if err != nil {
		return c, err
	}
	exit, err := readFormat(tracefs, "syscalls", "sys_exit_read")
	if err != nil {
		return c, err
	}
	for _, w := range []struct {
		f      format
		name   string
		offset uint32
	}{
		{enter, "__syscall_nr", 8}, {enter, "fd", 16}, {enter, "buf", 24}, {enter, "count", 32},
		{exit, "__syscall_nr", 8}, {exit, "ret", 16},
	} {
		if f, ok := w.f[w.name]; !ok || f.offset != w.offset {
			return c, fmt.Errorf("tracepoints of system calls: %s is not at offset %d", w.name, w.offset)
		}
	}
	return c, nil
}

// readBlockConf asks the format files of the block events what the disk probe has to
// know, and checks what it takes for granted.
func readBlockConf(tracefs string) (blockConf, error) {
	var c blockConf
	for _, w := range []struct {
		event string
		rwbs  *uint32           // where it is to be noted, nil: it is checked
		at    map[string]uint32 // offsets that the programs have
	}{
		{"block_bio_queue", nil, map[string]uint32{"nr_sector": 24, "rwbs": 28}},
		{"block_bio_complete", nil, map[string]uint32{"nr_sector": 24, "error": 28, "rwbs": 32}},
		{"block_split", nil, map[string]uint32{"new_sector": 24, "rwbs": 32}},
		{"block_rq_issue", &c.Issue, map[string]uint32{"nr_sector": 24}},
		{"block_rq_complete", &c.Done, map[string]uint32{"nr_sector": 24, "error": 28}},
	} {
		f, err := readBlockFormat(tracefs, w.event, w.at)
		if err != nil {
			return c, err
		}
		rwbs, ok := f["rwbs"]
		if !ok || rwbs.size < 4 {
			return c, fmt.Errorf("tracepoint block:%s: rwbs: %w", w.event, errFormat)
		}
		if w.rwbs != nil {
			*w.rwbs = rwbs.offset
		}
	}
	return c, nil
}

// readBlockFormat reads the format of a block event, and checks where its fields are.
func readBlockFormat(tracefs, event string, at map[string]uint32) (format, error) {
	f, err := readFormat(tracefs, "block", event)
	if err != nil {
		return nil, err
	}
	at["dev"], at["sector"] = 8, 16
	for name, offset := range at {
		if fd, ok := f[name]; !ok || fd.offset != offset {
			return nil, fmt.Errorf("tracepoint block:%s: %s is not at offset %d: %w", event, name, offset, errFormat)
		}
	}
	return f, nil
}

// checkRemap checks what the tapdisk probe takes for granted of block_bio_remap.
func checkRemap(tracefs string) error {
	_, err := readBlockFormat(tracefs, "block_bio_remap", map[string]uint32{"nr_sector": 24, "old_dev": 28, "old_sector": 32, "rwbs": 40})
	return err
}

// hasTracepoint tells whether the kernel has the tracepoint.
func hasTracepoint(tracefs, group, name string) (bool, error) {
	_, err := os.Stat(filepath.Join(tracefs, "events", group, name, "id"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
