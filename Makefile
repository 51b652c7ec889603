# The everyday commands; each is a script, so that CI and people run the same thing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build deb demo test lint fmt doc bench clean

help: ## Show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

build: ## Build the release binaries
	@. scripts/env.sh && scripts/install-build-deps && cargo build --release -p edgelink -p edgelink-controller -p edgelink-ctl -p edgelink-server -p edgelink-testbed && echo "binaries are in $$CARGO_TARGET_DIR/release" >&2

deb: build ## Build the Debian package
	@. scripts/env.sh && EDGELINK_BIN_DIR=$$CARGO_TARGET_DIR/release scripts/deb

demo: build ## Two nodes talk through a relay, in network namespaces; cleans up after itself
	@. scripts/env.sh && EDGELINK_BIN_DIR=$$CARGO_TARGET_DIR/release scripts/demo

test: ## Run every test (installs what it needs)
	@scripts/test

lint: ## Formatting, clippy, documentation, layering
	@scripts/lint

fmt: ## Format the code
	@cargo fmt --all

doc: ## Build the documentation
	@. scripts/env.sh && RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace && echo "open $$CARGO_TARGET_DIR/doc/edgelink_model/index.html" >&2

bench: build ## Measure throughput and CPU through the relay
	@. scripts/env.sh && EDGELINK_BIN_DIR=$$CARGO_TARGET_DIR/release scripts/bench

clean: ## Remove build products
	@. scripts/env.sh && cargo clean
