# The commands of this repository. `make` lists them.
#
# ARGS goes to the program that a target runs: `make test ARGS='--test relay after_any_crash'`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS ?=
SECONDS ?=
SEED ?=
OLD ?=
TARGET ?=
CARGO ?= cargo
# Checked by make check; installed beneath target/ when it is not there.
CARGO_DENY_VERSION := 0.20.2
# Used by make release and make fuzz; installed in the same way.
CARGO_CYCLONEDX_VERSION := 0.5.9
CARGO_FUZZ_VERSION := 0.13.2
# Builds the Debian package; installed beneath target/ when it is not there.
CARGO_DEB_VERSION := 3.8.0

# Cargo knows several ways to be told another directory than target/.
target_dir = $(shell $(CARGO) metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: ## A shop, the relay killed in the middle, and an audit of what arrived (DEMO_SECONDS=30)
	@scripts/prepare demo
	$(CARGO) build --locked --release --package postrider --package postrider-testbed
	@"$(target_dir)/release/demo" $(ARGS)

# Built first: no server has to wait for the compiler, and `cargo run` would build the dependencies once more, with
# fewer features than the workspace needs.
.PHONY: test
test: ## Every test, on private servers (ARGS='a_part_of_a_name')
	@scripts/prepare test
	$(CARGO) test --locked --workspace --no-run
	"$(target_dir)/debug/with-servers" $(CARGO) test --locked --workspace $(ARGS)

.PHONY: test-newer
test-newer: ## The same on PostgreSQL 17 and RabbitMQ 4, from Debian 13 (as root)
	@scripts/prepare newer >/dev/null
	$(CARGO) test --locked --workspace --no-run
	TESTBED_ROOT="$$(scripts/prepare newer)" "$(target_dir)/debug/with-servers" $(CARGO) test --locked --workspace $(ARGS)

# Under other names: bash counts seconds in a variable called SECONDS.
.PHONY: soak
soak: ## Faults at random under load, then the audit (SECONDS=120 SEED=7; ARGS=--plan shows the plan)
	@scripts/prepare soak
	$(CARGO) build --locked --release --package postrider --package postrider-testbed
	@SOAK_SECONDS="$(SECONDS)" SOAK_SEED="$(SEED)" "$(target_dir)/release/soak" $(ARGS)

.PHONY: bench
bench: ## A short form of all benchmarks, in under ten minutes (ARGS='latency --rate 1000')
	@scripts/prepare demo
	$(CARGO) build --locked --release --package postrider --package postrider-bench
	@"$(target_dir)/release/postrider-bench" $(ARGS)

.PHONY: bench-full
bench-full: ## All of them, in medians of five rounds (ARGS='--json FILE --plots docs/benchmarks')
	@scripts/prepare demo
	$(CARGO) build --locked --release --package postrider --package postrider-bench
	@"$(target_dir)/release/postrider-bench" --full $(ARGS)

.PHONY: check
check: ## Format, lints, and what the dependency graph may hold
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --package postrider --no-default-features -- -D warnings
# As cargo-fuzz builds them, but on a stable compiler, and not linked: without a name for what they are linked with, a C++ compiler would be needed.
	RUSTFLAGS="--cfg fuzzing" CUSTOM_LIBFUZZER_PATH=none/libnone.a $(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir "$(target_dir)/fuzz" -- -D warnings
	@scripts/check-dependencies $(CARGO_DENY_VERSION)

.PHONY: audit
audit: ## Published advisories and yanked versions among the dependencies; from the network
	@scripts/check-dependencies $(CARGO_DENY_VERSION) advisories

# SECONDS as for the soak, above.
.PHONY: fuzz
fuzz: ## A fuzz target, on a nightly compiler (TARGET=row|headers|config SECONDS=60)
	@FUZZ_SECONDS="$(SECONDS)" scripts/fuzz $(CARGO_FUZZ_VERSION) "$(TARGET)" $(ARGS)

.PHONY: test-upgrade
test-upgrade: ## A rolling upgrade from an older version to this one (OLD=a commit, or a program)
	@scripts/test-upgrade "$(OLD)"

.PHONY: build
build: ## A debug build of everything
	$(CARGO) build --locked --workspace

.PHONY: release
release: ## The program, optimised and reproducible: target/release/postrider, its SBOM, checksums
	scripts/build-release $(CARGO_CYCLONEDX_VERSION)

.PHONY: deb
deb: ## A Debian package of it: target/debian/postrider_*.deb
	@scripts/build-package $(CARGO_DEB_VERSION)

.PHONY: test-package
test-package: ## Install, upgrade, remove and purge that package, leaving nothing behind (as root)
	@scripts/test-package "$$(scripts/build-package $(CARGO_DEB_VERSION))"

.PHONY: format
format: ## Format the code
	$(CARGO) fmt --all
