# Every target sets up what it needs (testvm/setup.sh: Debian packages, and guest
# kernels in a cache folder); on a machine that has it, that takes no time.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX  ?= /usr/local
FUZZTIME ?= 20s

.PHONY: all build setup demo test unit live vm lab lint fuzz bench install clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

setup:
	sh testvm/setup.sh --kernel full

# The main job, on a real guest, in network and process namespaces of its own.
demo: setup build
	unshare --net --pid --fork --mount-proc bash docs/demo.sh

# All tests. As root all of them run; without, those that need devices are skipped.
# The lab host comes last and alone: guests in it are three times slower beside others.
test: setup
	$(GO) tool gotestsum --format pkgname -- -race -timeout 15m -skip '^TestLabHost$$' ./...
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
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

# Ratios against other ways to do the same, taken in turns within one run.
bench:
	sh testvm/setup.sh --packages libvirt-daemon,libvirt-clients,qemu-system-common
	$(GO) test -run '^$$' -bench 'HostSteps|Attach' -benchtime 1x -p 1 -timeout 10m ./tapmgr ./internal/bench

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0755 bin/vmnet $(DESTDIR)$(PREFIX)/bin/vmnet
	bin/vmnet man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/vmnet completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmnet
	bin/vmnet completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmnet
	bin/vmnet completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmnet.fish

clean:
	rm -rf bin
