# Every target sets up what it needs (testvm/setup.sh: Debian packages, and guest kernels in a cache
# directory). On a machine that has it, that takes no time. `make help` prints the targets from the
# comments that begin with ##.

GO      ?= go
PREFIX  ?= /usr/local
PRIVILEGE ?= none
GROUP   ?=
BIN     ?= bin
FUZZTIME ?= 20s
SOAK    ?= 3m

.PHONY: all help build programs man generate setup demo quick test test-packages test-raced test-plain test-pids test-lab fresh unit live vm lab lint fuzz soak cross cross-test bench bench-setup bench-switch arch release deb rpm packages-test release-setup browser-test recipes-test install uninstall clean

all: build

.NOTPARALLEL:

# Without the race detector, which needs cgo, all is built as the programs are, so that what one
# goal has compiled serves the next one.
quick lint programs: export CGO_ENABLED = 0

# Otherwise each program that is built with the race detector sleeps for a second before it exits.
export GORACE ?= atexit_sleep_ms=0

# If Go is missing or too old, goals that need it are refused before anything else is done.
ifneq ($(filter-out help setup install uninstall clean,$(or $(MAKECMDGOALS),all)),)
no_go := $(shell sh internal/install/go-version.sh '$(GO)')
ifneq ($(no_go),)
$(error $(no_go))
endif
endif

help: ## the targets, and how long they take on two cores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' Makefile

build: programs man ## the programs and their man pages, in bin (a minute at first, then seconds)

# qemu-netup must know where `make install` puts its other part, and `make install` must know that
# path.
programs:
	$(GO) build -trimpath -ldflags '-s -w -X "main.fullPath=$(PREFIX)/libexec/vmnet/qemu-netup-full"' -o '$(BIN)/' ./cmd/...
	@printf '%s\n' '$(PREFIX)' >'$(BIN)/prefix'

# The man pages, dated by the last commit.
man:
	rm -rf '$(BIN)/man'
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null)} GOARCH= $(GO) run -trimpath -tags mangen ./cmd/vmnet docs/man '$(BIN)/man'

# Needs clang and llvm-strip, which nothing else does, and the kernel's headers. The objects are
# committed; clang 14 makes the same ones again.
generate: ## the BPF programs, from their C sources (seconds; clang, llvm)
	BPF_CFLAGS="-I/usr/include/$$($(CC) -print-multiarch)" $(GO) generate ./internal/kernel/bpfguard ./internal/kernel/fastpath

# Lab hosts need root, so other users get only the kernel of test guests.
setup: ## Debian packages, as root, kernels for test guests, testpmd (minutes, once)
	sh testvm/setup.sh $$([ "$$(id -u)" != 0 ] || echo --kernel full --dpdk --network-manager)

# The main job, on a real guest, in network and process namespaces of its own; then a switch in
# userspace and two guests, without any capability; then networks of root and of a user.
demo: setup build ## the main job on a real guest, a switch without privileges, networks (two minutes; root)
	unshare --net --pid --fork --mount-proc bash docs/demo.sh
	unshare --net --pid --fork --mount-proc bash docs/demo-switch.sh
	unshare --net --pid --fork --mount-proc bash docs/demo-network.sh

define check_format
unformatted=$$($(GO) tool gofumpt -l .); if [ -n "$$unformatted" ]; then echo "gofumpt would change:" $$unformatted; exit 1; fi
endef

# To run at each save. Packages whose tests build programs are left to the other targets.
quick: ## vet, format, and the tests that need neither root nor guests (a minute, then seconds)
	$(GO) vet ./...
	@$(check_format)
	$(GO) test -skip '^TestLive|^TestLab' $$($(GO) list ./... | grep -v -e /internal/install$$ -e /internal/release$$ -e /internal/cli/mangen$$)

# What .ci/run does. STEPS selects some of the steps of internal/fresh/steps.sh.
STEPS ?=
fresh: ## everything a newcomer does, with the sessions of the documents, in a fresh Debian 12 (31 minutes; root, network)
	sh internal/fresh/fresh.sh $(STEPS)

# A machine that is busy with others fails a test now and then. Up to ten tests that fail are run
# once more, and those that pass then are named as flaky. A data race is never run again.
# $(call gotestsum,OPTIONS): two makes at once have reports of their own.
define gotestsum
@mkdir -p '$(BIN)' && reruns="$(BIN)/reruns.$$$$" && trap 'rm -f "$$reruns"' EXIT && \
$(GO) tool gotestsum --rerun-fails=1 --rerun-fails-max-failures=10 --rerun-fails-run-root-test --rerun-fails-abort-on-data-race --rerun-fails-report "$$reruns" $(1) && \
{ [ ! -s "$$reruns" ] || { echo '== flaky, passed when run again:' && cat "$$reruns"; }; }
endef

# As root, all tests run; without root, those that need devices are skipped. The tests of a package
# have namespaces of their own; tests that need the first process namespace run separately. The
# packages that take longest begin, so that none of them runs alone at the end. Four run at a time,
# with three tests that may run beside each other, since tests of guests wait. The lab hosts come
# last and alone: beside others, their guests are three times slower. Their tests are built without
# the race detector, which an emulated processor makes very slow, unless VMNET_LAB_RACE is set. Vet
# is left to lint.
test: setup test-packages test-pids test-lab ## all tests; without root, those that do not need it (15 minutes)

# The packages RACE are tested with the race detector: RACE=./... for all. What it compiles serves
# nothing else, and programs start and run slower. Those that read or build the sources never are.
# Tests whose names match SKIP are left out.
RACE ?=
SKIP ?=
longest = ./tapmgr ./cmd/vmnet ./internal/network ./cmd/vmnet-hook ./cmd/qemu-netup-full ./bridge/vswitch ./qmp
packages = $(shell $(GO) list $(longest)) $(shell $(GO) list ./...)
building = %/internal/arch %/internal/arch/report %/internal/cli/mangen %/internal/install %/internal/release
raced = $(if $(RACE),$(filter-out $(building),$(filter $(shell $(GO) list $(RACE)),$(packages))))
plain = $(filter-out $(raced),$(packages))

# $(call test_packages,PACKAGES,FLAGS)
test_packages = $(call gotestsum,--format pkgname --packages '$(1)' -- $(2) -vet=off -timeout 40m -p 4 -parallel 3 -skip '^TestLabHost$$|^TestLiveAllPIDs$(if $(SKIP),|$(SKIP))')

test-packages:
	$(MAKE) --no-print-directory --keep-going test-raced test-plain

test-raced: export CGO_ENABLED = 1
test-raced:
	$(if $(raced),$(call test_packages,$(raced),-race),@:)

test-plain: export CGO_ENABLED = 0
test-plain:
	$(if $(plain),$(call test_packages,$(plain),),@:)

test-pids:
	VMNET_TEST_PIDS=machine CGO_ENABLED=0 $(GO) tool gotestsum --format testname -- -vet=off -timeout 10m -run '^TestLiveAllPIDs' ./tapmgr ./cmd/vmnet-hook ./internal/watch

test-lab: export CGO_ENABLED = 0
test-lab:
	$(call gotestsum,--format testname --packages ./testvm/lab -- -vet=off -timeout 40m -run '^TestLabHost$$')

lab: setup ## the tests TestLab* on a full kernel in a virtual machine (8 minutes; root)
	$(GO) test -timeout 30m -v -run '^TestLabHost$$' ./testvm/lab

unit: ## the tests that need neither devices nor guests nor root, with the race detector (3 minutes)
	$(GO) test -race -skip '^TestLive|^TestLab' ./...

live: setup ## the tests TestLive* of the packages that make devices (2 minutes; root)
	$(GO) test -race -run '^TestLive' ./internal/... ./bridge/... ./macvtap/... ./vhost/...

vm: setup ## the tests TestLive* of the packages that start QEMU (8 minutes; root)
	$(GO) test -race -timeout 15m -run '^TestLive' ./qmp/... ./tapmgr/... ./testvm/... ./cmd/...

lint: ## vet, staticcheck, gofumpt, go mod tidy (a minute at first, then seconds)
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@$(check_format)
	@$(GO) mod tidy -diff

# What to judge the structure by: internal/arch/verbs.go says which files are counted.
arch: ## lines, files to open for a verb (20 at most), knots, links, coverage without root (minutes; root, QEMU)
	@$(GO) run ./internal/arch/report

# FUZZMOST=6 runs six of them, those whose last run is longest ago: so does CI.
FUZZMOST ?= 0
fuzz: export CGO_ENABLED = 0
fuzz: ## each fuzz test for FUZZTIME (20s), on all processors (15 minutes)
	$(GO) run ./internal/fresh/fuzz -time '$(FUZZTIME)' -most '$(FUZZMOST)'

# The userspace switch under load for SOAK; its memory and open files must not grow.
soak: ## the switch under load for SOAK (3m; root)
	VMNET_REQUIRE=root VMNET_SOAK=$(SOAK) $(GO) test -race -timeout 2h -v -run '^TestLiveSoak$$' ./bridge/vswitch

# Every package is built and vetted for each machine. Those that read and write bytes run their
# tests as a program of that machine, on a processor that QEMU emulates: s390x is big-endian. CI has
# cross-test for arm64 and s390x.
CROSS   ?= arm64 riscv64 s390x
bytes   := $(addprefix ./,bridge/brport bridge/portrate bridge/portsec bridge/vswitch/capture \
	bridge/vswitch/offload bridge/vswitch/pcapng internal/alias internal/evpn internal/framefilter \
	internal/network/config internal/network/radv internal/ovsdb internal/stablemac internal/strictyaml \
	internal/vhostuser/virtq)
cross cross-test packages-test: export CGO_ENABLED = 0
cross: release-setup ## build and vet for arm64, riscv64 and s390x, and tests of bytes as their programs (3 minutes at first; QEMU)
	@for arch in $(CROSS); do \
	  echo "== $$arch" && GOARCH=$$arch $(GO) vet ./... && GOARCH=$$arch $(GO) build -o /dev/null ./cmd/... || exit 1; \
	done
	@$(MAKE) --no-print-directory cross-test CROSS='$(CROSS)'

cross-test: release-setup ## tests of bytes as programs of arm64, riscv64 and s390x (2 minutes at first; QEMU)
	@for arch in $(CROSS); do \
	  echo "== $$arch" && case $$arch in arm64) cpu=aarch64;; *) cpu=$$arch;; esac && \
	  GOARCH=$$arch VMNET_TEST_STAGE=inside $(GO) test -vet=off -exec qemu-$$cpu \
	    -skip '^TestLive|^TestLab|^TestBusyServer$$' $(bytes) || exit 1; \
	done

# Ratios against other ways to do the same, measured in turns within one run. bench-switch does the
# same for the switch.
bench: ## attach, launch and networks, port security, rates and migration against other ways, docs/bench (10 minutes; root)
	sh testvm/setup.sh --packages libvirt-daemon,libvirt-clients,qemu-system-common,nftables,dnsmasq-base,iptables,busybox-static,passt,frr
	$(GO) test -v -run '^$$' -bench 'HostSteps|Overlay|Attach|BridgeHelper|Launch|FirstLease|NAT$$|UserNetwork|PortSecurity|Guard|LiveTCP|Migration|Move|Scale' -benchtime 1x -p 1 -timeout 15m ./bridge/vswitch ./internal/backend ./internal/bench ./internal/evpn ./internal/kernel/bpfguard ./internal/kernel/ratelimit ./tapmgr

# The switch against others: tables and plots in docs/bench. It takes 20 minutes on a quiet machine.
# With BENCH=-quick it takes two minutes, and prints the tables. BENCH=-h prints all options.
BENCH ?= -out docs/bench
bench-switch: programs bench-setup ## the switch against others, docs/bench (20 minutes; root)
	$(GO) build -o bin/ ./internal/bench/switchbench
	bin/switchbench $(BENCH)

# The switches to compare with.
bench-setup:
	sh internal/bench/switchbench/setup.sh

# qemu-netup gives NICs to users without privilege. PRIVILEGE=setuid or setcap gives it its
# privilege (with GROUP=kvm, only for the members of that group); none leaves that to you. uninstall
# takes the same PREFIX and DESTDIR.
install: ## install what make build has built, below PREFIX (root for most PREFIXes)
	@BIN='$(BIN)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PRIVILEGE='$(PRIVILEGE)' GROUP='$(GROUP)' sh internal/install/install.sh install

# DIST gets the archives of the sources and of the installed files, the lists of modules, PACKAGES
# (deb rpm) for ARCHES, the release notes and the checksums.
DIST ?= dist
PACKAGES ?= deb rpm
release: ## archives, packages, lists of modules and checksums of the last commit, in dist (minutes)
	@PREFIX='$(PREFIX)' PACKAGES='$(PACKAGES)' ARCHES='$(ARCHES)' PATH="$$(dirname "$$(command -v '$(GO)')"):$$PATH" sh internal/release/release.sh '$(DIST)'

# ARCHES are machines as Go names them.
ARCHES ?= amd64 arm64
deb rpm: ## packages for ARCHES (amd64 arm64), in dist (minutes at first, then seconds)
	@PATH="$$(dirname "$$(command -v '$(GO)')"):$$PATH" sh internal/packaging/package.sh $@ '$(DIST)' $(ARCHES)

# What test leaves out: both kinds of packages for two machines, which dpkg installs, upgrades and
# purges in a copy of this Debian, without systemd and with it.
packages-test: release-setup ## the packages built, read back, installed and run by systemd (2 minutes at first; root, network)
	VMNET_REQUIRE=root,dpkg,rpm,lintian,systemd $(GO) test -v -tags packages -timeout 30m ./internal/packaging

# What packages-test, cross and release need besides setup.
release-setup:
	sh testvm/setup.sh --packages rpm,systemd,debconf,lintian,qemu-user
	$(GO) -C internal/packaging/nfpm mod download
	$(GO) -C internal/release/sbom mod download

# What test leaves out as well, since a browser is large: the map's drawing and page.
browser-test: ## the map's drawing and page in Chromium (a minute at first; root, network)
	sh testvm/setup.sh --packages chromium
	VMNET_REQUIRE=browser $(GO) test -v -tags browser -run InABrowser -timeout 10m ./internal/netmap

# What test leaves out since the programs are large: Ansible, virt-install and Vagrant, with Python
# and Ruby.
recipes-test: ## the recipes of docs/recipes and the Ansible modules, with the programs that they are for (3 minutes; root, network)
	sh testvm/setup.sh --packages ansible-core,virtinst,vagrant,vagrant-libvirt
	VMNET_REQUIRE=all $(GO) test -v -tags recipes -timeout 20m ./internal/recipes

uninstall: ## remove the installed files
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' sh internal/install/install.sh uninstall

clean: ## remove bin and dist
	rm -rf '$(BIN)' '$(DIST)'
