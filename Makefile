# The desk. What a target does stands in scripts/; what it is for, in scripts/help.txt.

# Debian keeps mkfs, sfdisk and losetup where only root's PATH looks.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help install test lint image demo corpus bench fuzz clean

help:
	@cat scripts/help.txt

install: .venv/installed
.venv/installed: pyproject.toml scripts/install
	scripts/install

test: lint image
	scripts/install-packages test variants
	scripts/sid-root
	scripts/sid-root build/trixie trixie
	scripts/test

lint: install
	scripts/install-packages lint
	scripts/lint

image: install
	scripts/install-packages image
	scripts/make-image

demo: image
	scripts/install-packages corpus variants
	scripts/demo

corpus: install
	scripts/install-packages corpus variants
	scripts/corpus

bench: image
	scripts/install-packages corpus variants bench
	scripts/bench

fuzz: install
	scripts/fuzz

clean:
	-scripts/podman-run --forget
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
