//go:build linux

package helper

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// StunnelClient is stunnel as xapi starts it: `stunnel -fd N`. It reads its
// configuration from N, connects, and carries what comes on its standard input
// over TLS and what comes back to its standard output, which are one socket.
func StunnelClient(args []string) error {
	if len(args) != 2 || args[0] != "-fd" {
		return errors.New("usage: stunnel -fd N")
	}
	fd, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("-fd %s: %w", args[1], err)
	}
	conf, err := clientConfig(os.NewFile(uintptr(fd), "configuration"))
	if err != nil {
		return err
	}
	c, err := tls.Dial("tcp", conf["connect"], &tls.Config{
		ServerName:         conf["sni"],
		InsecureSkipVerify: true, // verifyPeer: the certificate itself is known, not who signed it for which name
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if conf["verifyPeer"] != "yes" {
				return nil
			}
			return known(raw, conf["CAfile"])
		},
	})
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
func clientConfig(f *os.File) (map[string]string, error) {
	defer f.Close()
	conf := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		key, value, _ := strings.Cut(s.Text(), "=")
		conf[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	if conf["connect"] == "" {
		return nil, errors.Join(errors.New("no connect in the configuration"), s.Err())
	}
	return conf, nil
}

// known tells whether the certificate that a server has shown is one of a file's.
func known(shown [][]byte, file string) error {
	all, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for {
		var b *pem.Block
		if b, all = pem.Decode(all); b == nil {
			return fmt.Errorf("certificate verify failed: not in %s", file)
		}
		if len(shown) > 0 && bytes.Equal(b.Bytes, shown[0]) {
			return nil
		}
	}
}
