//go:build linux

package helper

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// StunnelClient is stunnel as xapi starts it: `stunnel -fd N`. It reads its
// configuration from N, connects, and carries what comes on its standard input
// over TLS and what comes back to its standard output, which are one socket. The
// host's certificate is not checked: there is nobody else on the network.
func StunnelClient(args []string) error {
	if len(args) != 2 || args[0] != "-fd" {
		return errors.New("usage: stunnel -fd N")
	}
	fd, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("-fd %s: %w", args[1], err)
	}
	to, sni, err := clientConfig(os.NewFile(uintptr(fd), "configuration"))
	if err != nil {
		return err
	}
	c, err := tls.Dial("tcp", to, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintf(os.Stderr, "LOG5[0]: Service [stunnel] connected remote server from %s\n", c.LocalAddr())
	go func() {
		io.Copy(c, os.Stdin) // an end is an end
		_ = c.CloseWrite()
	}()
	io.Copy(os.Stdout, c) // the same
	return nil
}

// clientConfig reads what xapi configures a client with, to its end.
func clientConfig(f *os.File) (connect, sni string, err error) {
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), "=")
		switch strings.TrimSpace(key) {
		case "connect":
			connect = strings.TrimSpace(value)
		case "sni":
			sni = strings.TrimSpace(value)
		}
	}
	if connect == "" {
		err = errors.Join(errors.New("no connect in the configuration"), s.Err())
	}
	return connect, sni, err
}
