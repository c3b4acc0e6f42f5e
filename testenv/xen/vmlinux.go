package xen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/xenserver/dtagent/testenv/vm"
)

// vmlinux unpacks the kernel, which takes Xen and each xl create seconds on an
// emulated processor.
func (h *Host) vmlinux(ctx context.Context, file string) error {
	b, err := os.ReadFile(h.dom0.Image)
	if err != nil {
		return err
	}
	packed, err := payload(b)
	if err != nil {
		return fmt.Errorf("%s: %w", h.dom0.Image, err)
	}
	cmd := vm.Program(ctx, h.tree, "usr/bin/xz", "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(packed)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	plain, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("xz of %s: %w: %s", h.dom0.Image, err, bytes.TrimSpace(errs.Bytes()))
	}
	return os.WriteFile(file, plain, 0o644)
}

// payload returns the compressed kernel in a bzImage: Documentation/arch/x86/boot.rst.
func payload(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1
		magic         = 0x202
		payloadOffset = 0x248 // from the end of the setup code
		payloadLength = 0x24c
		sector        = 512
		sizeOfPlain   = 4 // bytes at the end of the payload
	)
	if len(image) < payloadLength+4 || string(image[magic:magic+4]) != "HdrS" {
		return nil, errors.New("no bzImage")
	}
	from := (uint64(image[setupSects])+1)*sector + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if length < sizeOfPlain || from+length > uint64(len(image)) {
		return nil, errors.New("a bzImage whose payload is not in it")
	}
	b := image[from : from+length-sizeOfPlain]
	if !bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")) {
		return nil, errors.New("its payload is not of xz, as those of bookworm are")
	}
	return b, nil
}
