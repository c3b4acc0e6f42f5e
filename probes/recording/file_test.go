package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-quicktest/qt"

	"github.com/xenserver/dtagent/probes/clock"
	"github.com/xenserver/dtagent/probes/event"
)

func testHeader() *Header {
	return &Header{
		ID: "7c2b3e4f-0000-4000-8000-000000000001", Version: "v1", Started: time.Date(2026, 12, 1, 4, 0, 0, 0, time.UTC), KTime: 1000,
		Host: Host{UUID: "u", Name: "n", PoolUUID: "p"}, Kernel: "6.1", Machine: "x86_64", Tier: "modern",
		Components: []string{"xapi"}, Offsets: clock.Offsets{{Since: 1, Add: 2}}, Seed: [2]uint64{1 << 63, 1<<64 - 1}, Note: "test",
	}
}

// blocks are some with every kind of item.
func blocks(n int) []*Block {
	var out []*Block
	for i := range n {
		b := new(Block)
		at := event.Time(1000 * (i + 1))
		b.Clock(clock.Offsets{{Since: at, Add: 5}, {Since: 0, Add: -5}})
		for j := range 5 {
			b.Event(&event.Event{Kind: event.KindData, Dir: event.In, TGID: 7, TID: uint32(j), Time: at + event.Time(j), Bytes: 300, Head: bytes.Repeat([]byte("POST / HTTP/1.1\r\n"), 5)})
		}
		b.Event(&event.Event{Kind: event.KindLost, Time: at, Count: 3})
		b.Event(&event.Event{Kind: event.KindExec, TGID: 9, Time: at + 1, Program: "vhd-util", SR: "sr", VDI: "vdi"})
		b.Event(&event.Event{
			Kind: event.KindRequest, Component: event.Tapdisk, TGID: 8, Time: at + 2, First: at, Last: at + 2,
			Request: event.Request{Layers: event.Layers{event.LayerTotal: 2, event.LayerDevice: 2}, Usual: 1, Offset: 1 << 40, Bytes: 4096, IOs: 1, Write: true, Slow: true},
			Disk:    &event.GuestDisk{Domid: 3, Devid: 51712, Device: "xvda", VM: "vm", Images: []string{"a", "b"}, Devices: []string{"253:1"}},
		})
		b.Tick(at + 50)
		b.Lost(at+60, 2)
		out = append(out, b)
	}
	return out
}

func write(t testing.TB, compress bool, bs ...*Block) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, testHeader(), compress)
	qt.Assert(t, qt.IsNil(err))
	for _, b := range bs {
		qt.Assert(t, qt.IsNil(w.Block(b)))
	}
	qt.Assert(t, qt.IsNil(w.End("done")))
	qt.Assert(t, qt.Equals(w.Bytes(), int64(out.Len())))
	qt.Assert(t, qt.IsNotNil(w.Block(blocks(1)[0]))) // it was ended
	return out.Bytes()
}

// read returns the items that can be read, as text, and how it ended.
func read(t testing.TB, file []byte) (items []string, err error) {
	t.Helper()
	items = []string{}
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		return items, err
	}
	defer r.Close()
	var it Item
	for {
		if err := r.Next(&it); err != nil {
			again := r.Next(&it)
			qt.Check(t, qt.Equals(again, err)) // and stays so
			return items, err
		}
		switch it.Kind {
		case ItemEvent:
			disk := it.Event.Disk
			it.Event.Disk = nil
			items = append(items, fmt.Sprintf("event %+v of %+v", it.Event, disk))
		case ItemTick:
			items = append(items, fmt.Sprintf("tick %d", it.Now))
		case ItemClock:
			items = append(items, fmt.Sprintf("clock %v", it.Offsets))
		case ItemLost:
			items = append(items, fmt.Sprintf("lost %d %d", it.Now, it.Lost))
		}
	}
}

func TestFile(t *testing.T) {
	bs := blocks(3)
	for _, compress := range []bool{false, true} {
		file := write(t, compress, bs...)
		r, err := NewReader(bytes.NewReader(file))
		qt.Assert(t, qt.IsNil(err))
		qt.Check(t, qt.DeepEquals(r.Header(), testHeader()))
		items, err := read(t, file)
		qt.Check(t, qt.Equals(err, io.EOF))
		qt.Assert(t, qt.HasLen(items, 3*11))
		qt.Check(t, qt.StringContains(items[0], "clock [{1000 5} {0 -5}]"))
		qt.Check(t, qt.Equals(items[9], "tick 1050"))
		qt.Check(t, qt.Equals(items[10], "lost 1060 2"))

		// Block by block it is the same, and can be written as it was read.
		var copied bytes.Buffer
		w, err := NewWriter(&copied, r.Header(), compress)
		qt.Assert(t, qt.IsNil(err))
		var b Block
		for err = r.ReadBlock(&b); err == nil; err = r.ReadBlock(&b) {
			qt.Assert(t, qt.IsNil(w.Block(&b)))
		}
		qt.Check(t, qt.Equals(err, io.EOF))
		qt.Check(t, qt.DeepEquals(r.Trailer(), &Trailer{"done", Totals{Events: 24, Lost: 6, Missing: 9, First: 1000, Last: 3060}}))
		qt.Check(t, qt.DeepEquals(r.Totals(), r.Trailer().Totals))
		qt.Assert(t, qt.IsNil(w.End("done")))
		qt.Check(t, qt.IsTrue(bytes.Equal(copied.Bytes(), file)))
	}
	qt.Check(t, qt.IsTrue(len(write(t, true, bs...)) < len(write(t, false, bs...))/2))
}

// TestTorn cuts a recording off at every byte.
func TestTorn(t *testing.T) {
	bs := blocks(2)
	for _, compress := range []bool{false, true} {
		file := write(t, compress, bs...)
		all, _ := read(t, file)
		for n := range file {
			items, err := read(t, file[:n])
			if n < sizeMagic {
				qt.Assert(t, qt.ErrorIs(err, ErrFormat), qt.Commentf("%d bytes", n))
				continue
			}
			qt.Assert(t, qt.ErrorIs(err, ErrTorn), qt.Commentf("%d bytes", n))
			qt.Assert(t, qt.DeepEquals(items, all[:len(items)]), qt.Commentf("%d bytes", n))
			qt.Assert(t, qt.Equals(len(items)%11, 0), qt.Commentf("%d bytes", n)) // whole blocks
		}
	}
}

// TestDamaged changes every byte of a recording.
func TestDamaged(t *testing.T) {
	bs := blocks(2)
	for _, compress := range []bool{false, true} {
		file := write(t, compress, bs...)
		all, _ := read(t, file)
		for i := range file {
			bad := bytes.Clone(file)
			bad[i] ^= 0x55
			items, err := read(t, bad)
			qt.Assert(t, qt.IsTrue(errors.Is(err, ErrDamaged) || errors.Is(err, ErrTorn) || errors.Is(err, ErrFormat) || errors.Is(err, ErrNewer)), qt.Commentf("byte %d: %v", i, err))
			qt.Assert(t, qt.DeepEquals(items, all[:len(items)]), qt.Commentf("byte %d", i))
		}
		_, err := read(t, append(bytes.Clone(file), make([]byte, 100)...)) // as a crash of the machine leaves files
		qt.Check(t, qt.ErrorIs(err, ErrDamaged))
		_, err = read(t, append(bytes.Clone(file), file[sizeMagic:]...))
		qt.Check(t, qt.ErrorIs(err, ErrDamaged))
		qt.Check(t, qt.StringContains(err.Error(), "after its end"))
	}
}

func TestOtherFiles(t *testing.T) {
	for _, s := range []string{"", "D", "[{}]\n", strings.Repeat("x", 1000), magic} {
		_, err := read(t, []byte(s))
		qt.Check(t, qt.ErrorIs(err, ErrFormat), qt.Commentf("%q", s))
	}
	broken := errors.New("broken disk")
	_, err := NewReader(io.MultiReader(strings.NewReader(magic), &failing{broken}))
	qt.Check(t, qt.ErrorIs(err, broken))
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error)  { return 0, f.err }
func (f *failing) Write([]byte) (int, error) { return 0, f.err }

// frameOf makes a frame by hand, with a checksum that is right.
func frameOf(kind, codec byte, length uint32, stored []byte) []byte {
	b := make([]byte, sizeFrame, sizeFrame+len(stored))
	b[0], b[1] = kind, codec
	binary.LittleEndian.PutUint32(b[4:], length)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(stored)))
	binary.LittleEndian.PutUint32(b[12:], checksum(b, stored))
	return append(b, stored...)
}

func TestNewer(t *testing.T) {
	start := write(t, false)
	start = start[:sizeMagic+sizeFrame+int(binary.LittleEndian.Uint32(start[sizeMagic+8:]))] // up to the header
	for what, c := range map[string]struct {
		more []byte
		err  error
		text string
	}{
		"frame":  {frameOf('Z', 0, 1, []byte{1}), ErrNewer, `frame 'Z'`},
		"codec":  {frameOf('B', 9, 1, []byte{1}), ErrNewer, `codec 9`},
		"item":   {frameOf('B', 0, 1, []byte{77}), ErrNewer, `item of kind 77`},
		"event":  {frameOf('B', 0, 3, []byte{byte(ItemEvent), byte(lastKind) + 1, 0}), ErrNewer, `event of kind 11`},
		"length": {frameOf('B', 0, 2, []byte{1}), ErrDamaged, `1 bytes instead of 2`},
		"zstd":   {frameOf('B', 1, 2, []byte{1, 2}), ErrDamaged, ``},
		"clock":  {frameOf('B', 0, 3, []byte{byte(ItemClock), 0xff, 0x7f}), ErrDamaged, `16383 offsets`},
	} {
		_, err := read(t, append(bytes.Clone(start), c.more...))
		qt.Check(t, qt.ErrorIs(err, c.err), qt.Commentf("%s", what))
		qt.Check(t, qt.StringContains(err.Error(), c.text), qt.Commentf("%s", what))
	}
	newer := bytes.Clone(start)
	newer[len(magic)]++
	_, err := read(t, newer)
	qt.Check(t, qt.ErrorIs(err, ErrNewer))
	qt.Check(t, qt.StringContains(err.Error(), "it has version 2, and up to 1 is known"))
}

// TestBombs unpacks what says that it is small, and what says that it
// is large.
func TestBombs(t *testing.T) {
	start := write(t, false)
	start = start[:sizeMagic+sizeFrame+int(binary.LittleEndian.Uint32(start[sizeMagic+8:]))]
	w, err := NewWriter(io.Discard, testHeader(), true)
	qt.Assert(t, qt.IsNil(err))
	bomb := w.z.EncodeAll(make([]byte, 64<<20), nil)
	qt.Assert(t, qt.IsTrue(len(bomb) < maxFrame))
	_, err = read(t, append(bytes.Clone(start), frameOf('B', compressed, 100, bomb)...))
	qt.Check(t, qt.ErrorIs(err, ErrDamaged))

	huge := frameOf('B', 0, 0, nil)
	binary.LittleEndian.PutUint32(huge[8:], 1<<32-1)
	_, err = read(t, append(bytes.Clone(start), huge...))
	qt.Check(t, qt.ErrorIs(err, ErrDamaged))
}

func TestLargeEventIsLost(t *testing.T) {
	var b Block
	b.Event(&event.Event{Kind: event.KindData, Head: make([]byte, maxEvent), Time: 5})
	qt.Check(t, qt.Equals(b.Totals(), Totals{Lost: 1, First: 5, Last: 5}))
	items, err := read(t, write(t, true, &b))
	qt.Check(t, qt.Equals(err, io.EOF))
	qt.Check(t, qt.DeepEquals(items, []string{"lost 5 1"}))

	var most Block // a block that is as full as it may be fits a frame
	for most.Len() <= MaxBlock {
		most.Event(&event.Event{Kind: event.KindData, Head: make([]byte, maxEvent/2)})
	}
	qt.Check(t, qt.IsNil(func() error {
		w, err := NewWriter(io.Discard, testHeader(), true)
		qt.Assert(t, qt.IsNil(err))
		return w.Block(&most)
	}()))
}

func TestWriterTellsErrors(t *testing.T) {
	full := errors.New("no space left on device")
	_, err := NewWriter(&failing{full}, testHeader(), true)
	qt.Check(t, qt.ErrorIs(err, full))
}

func FuzzReader(f *testing.F) {
	for _, compress := range []bool{false, true} {
		file := write(f, compress, blocks(1)...)
		f.Add(file)
		f.Add(file[:len(file)-7])
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		items, err := read(t, file)
		if err == nil {
			t.Fatalf("%d items without an end", len(items))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, ErrTorn) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) || errors.Is(err, ErrFormat) {
			return
		}
		t.Fatal(err)
	})
}

// FuzzBlock reads items behind a checksum that is right. What can be read is the
// same when it is written again.
func FuzzBlock(f *testing.F) {
	for _, b := range blocks(2) {
		f.Add(b.raw)
	}
	header := write(f, false)
	header = header[:sizeMagic+sizeFrame+int(binary.LittleEndian.Uint32(header[sizeMagic+8:]))]
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > maxFrame {
			return
		}
		r, err := NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(frameOf('B', 0, uint32(len(raw)), raw))))
		qt.Assert(t, qt.IsNil(err))
		var it Item
		var again Block
		for err = r.Next(&it); err == nil; err = r.Next(&it) {
			switch it.Kind {
			case ItemEvent:
				if again.Event(&it.Event); again.totals.Lost > 0 {
					return // larger than any that is written
				}
			case ItemTick:
				again.Tick(it.Now)
			case ItemClock:
				again.Clock(it.Offsets)
			case ItemLost:
				again.Lost(it.Now, it.Lost)
			}
			if again.Len() > MaxBlock {
				return
			}
		}
		if !errors.Is(err, ErrTorn) {
			return
		}
		first, _ := read(t, append(bytes.Clone(header), frameOf('B', 0, uint32(len(raw)), raw)...))
		second, _ := read(t, append(bytes.Clone(header), frameOf('B', 0, uint32(len(again.raw)), again.raw)...))
		qt.Assert(t, qt.DeepEquals(second, first))
	})
}

func BenchmarkBlock(b *testing.B) {
	ev := event.Event{Kind: event.KindData, Dir: event.In, TGID: 7, TID: 8, Bytes: 600, Head: make([]byte, 600), Conn: event.Conn{TGID: 7, FD: 9, Born: 5}}
	var bl Block
	b.ReportAllocs()
	for b.Loop() {
		if bl.Len() > MaxBlock {
			bl = Block{raw: bl.raw[:0]}
		}
		bl.Event(&ev)
	}
}
