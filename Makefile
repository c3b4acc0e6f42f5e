# dtagent. `make` builds bin/dtagent; `make help` lists what else there is.

SHELL      := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# A home that is missing or not ours must not stop a build.
ifeq ($(shell test -n "$$HOME" && test -w "$$HOME" && echo yes),)
export HOME := $(or $(TMPDIR),/tmp)/dtagent-home-$(shell id -u)
$(shell mkdir -p $(HOME))
endif

GO          ?= go
GOTESTSUM   := $(GO) run gotest.tools/gotestsum@v1.13.0
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BINDIR      := bin
PREFIX      ?= /usr/local
FUZZTIME    ?= 10s
FUZZPKGS    ?= ./...
BENCHTIME   ?= 1s
TESTFLAGS   ?=
RESULTS     ?=
VMFLAGS     ?=
XENFLAGS    ?=
ACCURACYFLAGS ?=
VERDICTFLAGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the agent, one static binary; needs Go only
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BINDIR)/dtagent ./cmd/dtagent

.PHONY: generate
generate: ## rebuild the BPF objects from their C sources; needs clang
	$(GO) generate ./bpf/...

.PHONY: check-generated
check-generated: ## prove that the BPF objects equal their sources; needs clang
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	cp -r go.mod go.sum bpf "$$dir"; \
	(cd "$$dir" && $(GO) generate ./bpf/...); \
	diff -rq bpf "$$dir/bpf" || { echo 'The objects in bpf/ are not what their sources make: run make generate.' >&2; exit 1; }; \
	echo 'The BPF objects equal their sources.'

# Commands that tests use, and Debian's packages with them.
DEPS := gcc:gcc gcc:libc6-dev strace:strace rpm:rpm dpkg-deb:dpkg systemd-analyze:systemd

.PHONY: deps
deps: ## get what the tests need beyond Go (a C compiler, strace, rpm, systemd-analyze); installs it as root on Debian
	@missing=; for d in $(DEPS); do command -v "$${d%%:*}" >/dev/null || missing="$$missing $${d##*:}"; done; \
	[ -z "$$missing" ] || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing; \
	elif ! command -v gcc >/dev/null; then \
		echo 'The tests need a C compiler (the race detector, the simulated dom0): install gcc and libc6-dev.' >&2; exit 1; \
	else \
		echo "Some tests will be skipped; install$$missing for them." >&2; \
	fi

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l bpf cmd correlate observer packaging probes testenv); \
	[ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	cd testenv/otelreceiver && $(GO) vet ./...
	$(STATICCHECK) ./...

# Tests that need the kernel skip themselves, by name, where it or the
# privileges do not allow them; gotestsum counts and lists them at the end.
.PHONY: test
test: deps lint ## all tests: unit, race, fuzz seeds, and as root those with real eBPF
	$(GOTESTSUM) --format pkgname $(if $(RESULTS),--jsonfile $(RESULTS)) -- -race -count=1 -timeout 40m $(TESTFLAGS) ./...

.PHONY: vmtest
vmtest: ## run the kernel tests on Linux 5.10, 6.1, 6.12 and 7.2 under QEMU; needs apt-get and gcc, but neither root nor KVM
	$(GO) run ./testenv/vm/cmd/vmtest $(VMFLAGS)

.PHONY: kernels
kernels: ## make vmtest, and write what came of it into docs/kernels.md
	$(GO) run ./testenv/vm/cmd/vmtest -write docs/kernels.md $(VMFLAGS)

.PHONY: xentest
xentest: ## run the agent and its kernel tests in the dom0 of a real Xen host with guests, under QEMU; needs what vmtest needs
	$(GO) run ./testenv/xen/cmd/xentest $(XENFLAGS)

# When the time is over while a worker is busy, go test can take that for a failure
# of the target ("context deadline exceeded", without an input): it runs again then.
.PHONY: fuzz
fuzz: ## run every fuzz target of FUZZPKGS (./...) for FUZZTIME (10s)
	@failed=; for pkg in $$($(GO) list $(FUZZPKGS)); do \
		for f in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			for try in 1 2 3; do \
				echo "== $$pkg $$f"; \
				if out=$$($(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "$$pkg" 2>&1 | tee >(cat >&2)); then break; fi; \
				if grep -q 'Failing input\|panic' <<<"$$out" || ! grep -q '^    context deadline exceeded$$' <<<"$$out" || [ $$try = 3 ]; then failed="$$failed $$pkg:$$f"; break; fi; \
			done; \
		done; \
	done; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

.PHONY: bench
bench: deps ## print the price list; as root with real eBPF and the simulated dom0
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -p 1 -timeout 60m ./...

.PHONY: demo
demo: build ## trace a simulated dom0 with real eBPF and print the trees, or play a recording where that is not possible; LIVE=1 insists; ZIPKIN=URL sends them there too
	@! $(BINDIR)/dtagent check >/dev/null 2>&1 || $(MAKE) --no-print-directory deps
	$(GO) run ./testenv/cmd/demo --dtagent $(BINDIR)/dtagent --zipkin '$(ZIPKIN)' $(if $(filter-out 0 no,$(LIVE)),--live)

.PHONY: accuracy
accuracy: deps ## score the agent's links and verdicts against ground truth, as root; ACCURACYFLAGS=-h, VERDICTFLAGS=-h list options
	$(GO) run ./testenv/cmd/score $(ACCURACYFLAGS)
	$(GO) run ./testenv/cmd/verdicts $(VERDICTFLAGS)

.PHONY: verdicts
verdicts: ## the second half of make accuracy: what holds up guests' disks, named and in the right layer
	$(GO) run ./testenv/cmd/verdicts $(VERDICTFLAGS)

.PHONY: rpm
rpm: build ## build the RPMs for dom0 (el7) and for EL10 hosts into bin/; needs neither root nor rpmbuild
	$(GO) run ./packaging/cmd/pack --binary $(BINDIR)/dtagent --out $(BINDIR) --version '$(VERSION)' rpm

.PHONY: deb
deb: build ## build the Debian package into bin/
	$(GO) run ./packaging/cmd/pack --binary $(BINDIR)/dtagent --out $(BINDIR) --version '$(VERSION)' deb

.PHONY: install
install: build ## install what the packages install, without a package manager; DESTDIR and PREFIX as usual
	install -D -m 0755 $(BINDIR)/dtagent $(DESTDIR)$(PREFIX)/sbin/dtagent
	install -D -m 0644 packaging/dtagent.service $(DESTDIR)/usr/lib/systemd/system/dtagent.service
	sed -i 's|/usr/sbin|$(PREFIX)/sbin|' $(DESTDIR)/usr/lib/systemd/system/dtagent.service
	@case "$$(uname -r)" in 4.*) \
		install -D -v -m 0644 packaging/10-el7.conf $(DESTDIR)/usr/lib/systemd/system/dtagent.service.d/10-el7.conf;; esac
	install -d -m 0755 $(DESTDIR)/etc/dtagent/observers.d
	[ -e $(DESTDIR)/etc/dtagent/dtagent.conf ] || install -m 0644 packaging/dtagent.conf $(DESTDIR)/etc/dtagent/dtagent.conf
	install -d -m 0700 $(DESTDIR)/var/lib/dtagent
	install -D -m 0644 -t $(DESTDIR)/usr/share/doc/dtagent README.md
	install -D -m 0644 -t $(DESTDIR)/usr/share/doc/dtagent/docs docs/*.md
	install -D -m 0644 -t $(DESTDIR)/usr/share/licenses/dtagent LICENSE LICENSES/*.txt

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BINDIR)
