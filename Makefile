# Everything here runs in a fresh clone. The tools are Go 1.26 and what
# internal/tools/install.sh adds.

ARGS ?=
FUZZTIME ?= 60s
TESTTIME ?= 1h
N ?= 10
PKG ?= ./...
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X main.version=$(VERSION)) $(if $(COMMIT),-X main.commit=$(COMMIT))

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: postgres build ## run the whole relay here and show one message; ARGS=--once ends after it
	@bin/postern demo $(ARGS)

.PHONY: build
build: ## build bin/postern and bin/smtpbench
	@go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: man
man: build ## write the manual pages into bin/man
	@bin/postern man bin/man

.PHONY: deb
deb: ## build a package for Debian and Ubuntu in bin; GOARCH=arm64 for another machine
	@VERSION='$(VERSION)' COMMIT='$(COMMIT)' sh configs/debian/build.sh bin

.PHONY: image
image: ## build the container image postern, where there is an engine
	@command -v docker >/dev/null || { echo "docker is missing: 'make image' needs it, and a running engine" >&2; exit 1; }
	@docker version >/dev/null 2>&1 || { echo "no container engine answers to docker: start one, or see 'docker version'" >&2; exit 1; }
	docker build --build-arg VERSION='$(VERSION)' --build-arg COMMIT='$(COMMIT)' -t postern .

.PHONY: sbom
sbom: build ## write what the program consists of into bin: sbom.cdx.json (CycloneDX) and LICENSES
	@go run ./internal/tools/sbom -version '$(VERSION)' -out bin bin/postern

# The packages that take longest come first, so that none of them runs alone at the end, and
# one more runs than there are processors: tests wait a lot. Vet has been here with lint.
.PHONY: test
test: lint postgres cc peers ## everything that CI runs: lint, then all tests under the race detector
	@go run ./internal/tools/gotest -race -vet=off -shuffle=on -count=1 -timeout $(TESTTIME) -p $$(($$(getconf _NPROCESSORS_ONLN) + 1)) \
		./cmd/postern ./relay ./relay/queue ./relay/submission ./...

.PHONY: lint
lint: ## check the format, vet, staticcheck
	@unformatted=$$(gofmt -l $$(go list -f '{{.Dir}}' ./...) | sort -u); \
	if [ -n "$$unformatted" ]; then echo "not formatted; run gofmt -w:"; echo "$$unformatted"; exit 1; fi
	@go vet ./...
	@go tool staticcheck ./...
	@go -C internal/tools/containers vet . # a module of its own

# A finding in code that is called fails it. The second line of each is for the tool
# that is a module of its own.
.PHONY: audit
audit: ## look for known vulnerabilities in DB, a folder with a copy of Go's database of them; PKG=./relay/smtp for less
ifdef DB
	@sh internal/tools/vulndb.sh '$(DB)'
	@go tool govulncheck -db 'file://$(abspath $(DB))' $(PKG)
	@go tool govulncheck -C internal/tools/containers -db 'file://$(abspath $(DB))' .
else
	@go list -deps -test -f '{{with .Module}}{{.Path}} {{.Version}}{{end}}' ./... | sort -u
	@go -C internal/tools/containers list -deps -f '{{with .Module}}{{.Path}} {{.Version}}{{end}}' . | sort -u
	@go env GOVERSION
	@echo "No database of vulnerabilities was asked: these are only the versions in use. Give a folder: make audit DB=FOLDER"
endif

.PHONY: bench
bench: postgres peers build ## measure the relay, and Postfix beside it when it can be had; ARGS are smtpbench's
	@bin/smtpbench compare $(ARGS)

.PHONY: full
full: postgres peers ## the long tests, an hour or more: as test, with POSTERN_LONG=1
	@POSTERN_LONG=1 go run ./internal/tools/gotest -shuffle=on -count=1 -timeout 4h ./...

.PHONY: steady
steady: postgres cc peers ## each package's tests N times (10) beside busy loops, and which were red; PKG=./relay/queue for one
	@go run ./internal/tools/steady -n $(N) $(PKG)

.PHONY: failover
failover: postgres ## twenty failovers to a synchronous standby, and what each costs: ten minutes
	@POSTERN_FAILOVER=1 go test -v -parallel=1 -run='^TestR1(Silent|Killed)Primary$$' -count=1 -timeout 1h ./relay

.PHONY: fuzz
fuzz: postgres ## fuzz every target for FUZZTIME (60s)
	@sh internal/tools/fuzz.sh $(FUZZTIME)

# The targets' tools, installed when they are missing.

.PHONY: postgres cc peers
postgres cc:
	@sh internal/tools/install.sh $@

# Foreign mail programs, unpacked into .cache/peers. Status 3: no package
# manager here, so the tests that need them are skipped.
peers:
	@sh internal/peers/fetch.sh || test $$? -eq 3
