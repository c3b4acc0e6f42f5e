package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// magic starts both directions of xe's protocol, followed by its version 0.2.
const magic = "XenSource thin CLI protocol"

var version = []byte{0, 0, 0, 0, 2, 0, 0, 0}

// ErrCommand is the error of an xe command that ended with an exit status other
// than 0.
var ErrCommand = errors.New("xe command failed")

// Xe runs an xe command ("vm-list", "params=uuid") as the xe program does and
// returns what it prints.
func (c *Client) Xe(ctx context.Context, args ...string) (string, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return "", fmt.Errorf("xe: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", fmt.Errorf("xe: %w", err)
		}
	}
	body := strings.Join(append(args, "username=root", "password=null"), "\n")
	head := "POST /cli HTTP/1.0\r\nUser-agent: xe-cli/Unix/0.2\r\noriginator: cli\r\n"
	if c.o.Traceparent != "" {
		head += "traceparent: " + c.o.Traceparent + "\r\n"
	}
	if c.o.Baggage != "" {
		head += "baggage: " + c.o.Baggage + "\r\n"
	}
	head += fmt.Sprintf("content-length: %d\r\n\r\n", len(body))
	if _, err := io.WriteString(conn, head+body); err != nil {
		return "", fmt.Errorf("xe: %w", err)
	}
	hello := make([]byte, len(magic)+len(version))
	if _, err := io.ReadFull(conn, hello); err != nil {
		return "", fmt.Errorf("xe: %w", err)
	}
	if string(hello[:len(magic)]) != magic {
		return "", fmt.Errorf("xe: the server says %q", hello)
	}
	if _, err := conn.Write(append([]byte(magic), version...)); err != nil {
		return "", fmt.Errorf("xe: %w", err)
	}
	var out strings.Builder
	for {
		var n uint32
		if err := binary.Read(conn, binary.LittleEndian, &n); err != nil {
			return out.String(), fmt.Errorf("xe: %w", err)
		}
		if n < 8 || n > maxReply {
			return out.String(), fmt.Errorf("xe: message of %d bytes", n)
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(conn, msg); err != nil {
			return out.String(), fmt.Errorf("xe: %w", err)
		}
		// A command (0): print (0) a string, or exit (4) with a status.
		switch binary.LittleEndian.Uint32(msg[4:]) {
		case cliPrint:
			if len(msg) >= 12 {
				out.Write(msg[12:])
			}
		case cliExit:
			if len(msg) >= 12 && binary.LittleEndian.Uint32(msg[8:]) != 0 {
				return out.String(), ErrCommand
			}
			return out.String(), nil
		}
	}
}

const (
	cliPrint = 0
	cliExit  = 4
)
