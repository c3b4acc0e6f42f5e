// Package recording is the file in which events are kept as they came from the
// probes, redacted as they are there, so that correlation can be done again.
//
// A recording holds what the engine was given, in that order: events, the times at
// which its clock was moved on, and how ktime became wall time. What was lost on
// the way into the recording stands in it at its place.
//
// # The file
//
// It begins with "DTREC\n" and the version, 16 bits. Then come frames, each of
//
//	1 byte   kind: 'H' the header, 'B' a block, 'E' the end
//	1 byte   codec: 0 as it is, 1 zstd
//	2 bytes  zero
//	4 bytes  length of the content
//	4 bytes  length of what is stored
//	4 bytes  CRC-32C of the 12 bytes before and of what is stored
//	         what is stored
//
// with numbers in little endian. The first frame is the header and holds a JSON
// object (Header); the last is the end and holds one, too (Trailer). A block is a
// row of items (block.go) and can be read without those before it. No frame holds
// more than 1 MiB, so a reader needs to believe no length. A file is only ever
// appended to, a frame at a time: of one that ends in the middle, all that stands
// before its last frame can be used.
//
// A change that older readers would misread makes the version greater. Readers
// refuse what is newer than they are.
package recording
