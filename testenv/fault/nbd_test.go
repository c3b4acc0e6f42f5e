//go:build linux

package fault

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/go-quicktest/qt"
)

// nbdDialog is requests as the kernel sends them.
func nbdDialog(t testing.TB, requests ...any) []byte {
	var b []byte
	for _, r := range requests {
		var err error
		b, err = binary.Append(b, binary.BigEndian, r)
		qt.Assert(t, qt.IsNil(err))
	}
	return b
}

func TestServeNBD(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	qt.Assert(t, qt.IsNil(client.SetDeadline(time.Now().Add(time.Minute)))) // an answer too long would block both
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveNBD(server, newImage(8192), func() time.Duration { return 0 })
	}()
	ask := func(answer int, requests ...any) (nbdReply, []byte) {
		t.Helper()
		_, err := client.Write(nbdDialog(t, requests...))
		qt.Assert(t, qt.IsNil(err))
		var r nbdReply
		qt.Assert(t, qt.IsNil(binary.Read(client, binary.BigEndian, &r)))
		b := make([]byte, answer)
		_, err = io.ReadFull(client, b)
		qt.Assert(t, qt.IsNil(err))
		return r, b
	}
	page := bytes.Repeat([]byte("ab"), 2048)
	r, _ := ask(0, nbdRequest{Magic: nbdRequestMagic, Type: nbdWrite, Cookie: 7, From: 4096, Len: 4096}, page)
	qt.Check(t, qt.Equals(r, nbdReply{Magic: nbdReplyMagic, Cookie: 7}))
	r, b := ask(4096, nbdRequest{Magic: nbdRequestMagic, Type: nbdRead, Cookie: 8, From: 4096, Len: 4096})
	qt.Check(t, qt.Equals(r, nbdReply{Magic: nbdReplyMagic, Cookie: 8}))
	qt.Check(t, qt.DeepEquals(b, page))
	r, b = ask(512, nbdRequest{Magic: nbdRequestMagic, Type: nbdRead, Cookie: 9, Len: 512})
	qt.Check(t, qt.Equals(r, nbdReply{Magic: nbdReplyMagic, Cookie: 9}))
	qt.Check(t, qt.DeepEquals(b, make([]byte, 512)))
	r, _ = ask(0, nbdRequest{Magic: nbdRequestMagic, Type: nbdFlush, Cookie: 10})
	qt.Check(t, qt.Equals(r, nbdReply{Magic: nbdReplyMagic, Cookie: 10}))
	const einval = 22
	for _, bad := range []nbdRequest{
		{Type: nbdRead, From: 4097, Len: 4096},
		{Type: nbdRead, From: 1 << 63, Len: 512},
		{Type: 99},
	} {
		bad.Magic, bad.Cookie = nbdRequestMagic, 11
		r, _ = ask(0, bad)
		qt.Check(t, qt.Equals(r, nbdReply{Magic: nbdReplyMagic, Error: einval, Cookie: 11}))
	}
	_, err := client.Write(nbdDialog(t, nbdRequest{Magic: nbdRequestMagic, Type: nbdDisc}))
	qt.Assert(t, qt.IsNil(err))
	<-served
}

// fromAndNowhere is a connection on which somebody says what is in it.
type fromAndNowhere struct{ io.Reader }

func (fromAndNowhere) Write(b []byte) (int, error) { return len(b), nil }

func FuzzServeNBD(f *testing.F) {
	f.Add(nbdDialog(f, nbdRequest{Magic: nbdRequestMagic, Type: nbdWrite, From: 1, Len: 2}, [2]byte{1, 2}, nbdRequest{Magic: nbdRequestMagic, Type: nbdRead, Len: 4096}))
	f.Add(nbdDialog(f, nbdRequest{Magic: nbdRequestMagic, Type: nbdRead, From: 1 << 63, Len: 1 << 31}))
	f.Fuzz(func(t *testing.T, said []byte) {
		serveNBD(fromAndNowhere{bytes.NewReader(said)}, newImage(4096), func() time.Duration { return 0 })
	})
}
