# The commands of this repository. `make` lists them.
#
# ARGS goes to the program that a target runs: `make test ARGS='--test relay after_any_crash'`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS ?=
SECONDS ?=
SEED ?=
CARGO ?= cargo
# Checked by make check; installed beneath target/ when it is not there.
CARGO_DENY_VERSION := 0.20.2

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
	@scripts/check-dependencies $(CARGO_DENY_VERSION)

.PHONY: build
build: ## A debug build of everything
	$(CARGO) build --locked --workspace

.PHONY: release
release: ## The program, optimised: target/release/postrider
	$(CARGO) build --locked --release --package postrider

.PHONY: format
format: ## Format the code
	$(CARGO) fmt --all
