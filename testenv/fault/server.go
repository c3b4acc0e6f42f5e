//go:build linux

package fault

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/xenserver/dtagent/testenv/internal/slowfile"
)

// serverOf makes a process a server: which one, and the size of its disk in bytes.
const serverOf = "DTAGENT_FAULT_SERVER"

const (
	serverFUSE = "fuse"
	serverNBD  = "nbd"
)

// obeyed is what a server answers, and no program prints.
const obeyed = 6 // ACK

// Main is to be called first by the main function, or TestMain, of a program that
// opens devices of the kinds nbd and loop-fuse. It returns, unless the process is
// one that Open has started as a server of these.
//
// A program cannot serve itself: when it was killed while it waits for its disk, the
// two would wait for each other.
func Main() {
	var kind string
	var size int64
	if n, _ := fmt.Sscanf(os.Getenv(serverOf), "%s %d", &kind, &size); n != 2 {
		return
	}
	if err := serve(kind, size); err != nil {
		fmt.Fprintln(os.Stderr, "fault: server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve serves what is on descriptor 3 until that ends, or who started it does.
func serve(kind string, size int64) error {
	var l lag
	go func() {
		if err := obey(os.Stdin, os.Stdout, &l); err != nil {
			fmt.Fprintln(os.Stderr, "fault: server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}()
	if kind == serverFUSE {
		return slowfile.ServeLate(3, size, l.get)
	}
	serveNBD(os.NewFile(3, "nbd"), newImage(size), l.get)
	return nil
}

// obey sets the delay to what it is told, and says when that is done.
func obey(in io.Reader, out io.Writer, l *lag) error {
	for {
		var ns int64
		if err := binary.Read(in, binary.NativeEndian, &ns); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := l.set(time.Duration(ns)); err != nil {
			return err
		}
		if _, err := out.Write([]byte{obeyed}); err != nil {
			return err
		}
	}
}

// serve starts the server of a disk, which goes with the device and with this
// process, and returns what sets its delay. The server gets a copy of the file.
func (d *device) serve(kind string, size int64, file *os.File) (set func(time.Duration) error, err error) {
	// A program of tests that does not call Main runs none, others do not know the flag.
	server := exec.Command("/proc/self/exe", "-test.run=^$")
	server.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", serverOf, kind, size), "GORACE=atexit_sleep_ms=0") // else the race detector waits for 1 s
	server.Stderr = os.Stderr
	server.ExtraFiles = []*os.File{file}
	orders, err := server.StdinPipe()
	if err != nil {
		return nil, err
	}
	done, err := server.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, orders.Close())
	}
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	d.onClose(func() error { return errors.Join(orders.Close(), server.Wait()) }) // it ends with its orders
	set = func(delay time.Duration) error {
		if err := binary.Write(orders, binary.NativeEndian, int64(delay)); err != nil {
			return fmt.Errorf("server: %w", err)
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(done, b); err != nil {
			return fmt.Errorf("server: %w", err)
		}
		if b[0] != obeyed {
			return fmt.Errorf("server: it says %q", b)
		}
		return nil
	}
	if err := set(0); err != nil {
		return nil, fmt.Errorf("%w: does this program call fault.Main first?", err)
	}
	return set, nil
}
