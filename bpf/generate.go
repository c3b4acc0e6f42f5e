//go:build linux

package bpf

// The objects are checked in, so that building dtagent needs no C compiler.
// Generating needs clang, llvm-strip (14 are the ones that the checked-in
// objects are from) and the headers of libbpf-dev. -mcpu=v2 since Linux 4.19
// knows no 32-bit jumps; the modern tier follows it, so that both run the same
// instructions.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude -DDT_LEGACY" legacyStream stream.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude -DDT_LEGACY" legacyProcess process.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude" modernStream stream.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude" modernProcess process.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude -DDT_LEGACY" legacyWait wait.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude" modernWait wait.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude -DDT_LEGACY" legacyDisk disk.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude" modernDisk disk.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude -DDT_LEGACY" legacyTapdisk tapdisk.bpf.c
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -tags linux -target amd64 -cc clang -strip llvm-strip -cflags "-O2 -Wall -Werror -mcpu=v2 -Iinclude" modernTapdisk tapdisk.bpf.c
