# Every target sets up what it needs (testvm/setup.sh: Debian packages, and guest
# kernels in a cache folder); on a machine that has it, that takes no time.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX  ?= /usr/local
PRIVILEGE ?= none
GROUP   ?=
FUZZTIME ?= 20s
SOAK    ?= 3m

.PHONY: all build setup demo test unit live vm lab lint fuzz soak bench bench-setup bench-switch man install uninstall clean

all: build

# qemu-netup-front is what is installed as qemu-netup: it must know where the rest of it is.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION) -X "main.fullPath=$(PREFIX)/libexec/vmnet/qemu-netup-full"' -o bin/ ./cmd/...

setup:
	sh testvm/setup.sh --kernel full

# The main job, on a real guest, in network and process namespaces of its own; then a switch in userspace and two guests,
# without a capability.
demo: setup build
	unshare --net --pid --fork --mount-proc bash docs/demo.sh
	unshare --net --pid --fork --mount-proc setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all bash docs/demo-switch.sh

# All tests. As root all of them run; without, those that need devices are skipped.
# The packages that take longest begin, so that none of them is left alone at the end, and three run at a time: tests of
# guests wait more than they compute. The lab hosts come last and
# alone: guests in it are three times slower beside others.
test: setup
	$(GO) tool gotestsum --format pkgname -- -race -timeout 15m -p 3 -skip '^TestLabHost$$' ./tapmgr ./cmd/vmnet-hook ./...
	$(GO) tool gotestsum --format testname -- -race -timeout 30m -run '^TestLabHost$$' ./testvm/lab

# The tests TestLab* of all packages, on a full kernel in a virtual machine.
lab: setup
	$(GO) test -race -timeout 30m -v -run '^TestLabHost$$' ./testvm/lab

# Without devices, guests and root.
unit:
	$(GO) test -race -skip '^TestLive|^TestLab' ./...

# What works on real devices, without and with guests.
live: setup
	$(GO) test -race -run '^TestLive' ./internal/... ./bridge/... ./macvtap/... ./vhost/...

vm: setup
	$(GO) test -race -timeout 15m -run '^TestLive' ./qmp/... ./tapmgr/... ./testvm/... ./cmd/...

lint:
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@unformatted=$$($(GO) tool gofumpt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofumpt would change:" $$unformatted; exit 1; fi
	@$(GO) mod tidy -diff

# Each fuzz target of the tree for FUZZTIME.
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg || exit 1; \
	  done; \
	done

# The userspace switch at work for SOAK, with memory and files that must not grow.
soak:
	VMNET_REQUIRE=root VMNET_SOAK=$(SOAK) $(GO) test -race -timeout 2h -v -run '^TestLiveSoak$$' ./bridge/vswitch

# Ratios against other ways to do the same, taken in turns within one run. bench-switch does it for the switch.
bench:
	sh testvm/setup.sh --packages libvirt-daemon,libvirt-clients,qemu-system-common
	$(GO) test -v -run '^$$' -bench 'HostSteps|Attach|BridgeHelper|Launch' -benchtime 1x -p 1 -timeout 10m ./tapmgr ./internal/bench

# The switch against others: table and plots in docs/bench. It takes 15 minutes of a quiet machine; with
# BENCH=-quick a minute, and prints the table. BENCH=-h tells more.
BENCH ?= -out docs/bench
bench-switch: build bench-setup
	$(GO) build -o bin/ ./internal/bench/switchbench
	bin/switchbench $(BENCH)

# What it compares with.
bench-setup:
	sh internal/bench/switchbench/setup.sh

# The man pages, of the day of the last commit.
man:
	rm -rf bin/man
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null)} $(GO) run -tags mangen ./cmd/vmnet docs/man bin/man

# qemu-netup lets users without rights have NICs: PRIVILEGE=setuid (with GROUP=kvm,
# those of a group alone) or setcap gives it its right, none leaves that to you.
# uninstall takes the same PREFIX and DESTDIR.
install: build man
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PRIVILEGE='$(PRIVILEGE)' GROUP='$(GROUP)' sh internal/install/install.sh install

uninstall:
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' sh internal/install/install.sh uninstall

clean:
	rm -rf bin
