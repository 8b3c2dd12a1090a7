# SPDX-License-Identifier: GPL-2.0-only
#
# What to type: `make help`.  The work is done by scripts/, each of which has a
# usage text.  Parameters: KVER=7.3 for that kernel instead of 6.12;
# KSRC=/path/to/linux-6.12.y instead of Debian's source; ARGS="..." for the script of
# demo, check, check-debug, check-configs, fuzz, bench, models, lint.

MAKEFLAGS += --no-print-directory
PREFIX ?= /usr/local
export KVER KSRC PATCH FILE QUICK FLAVOUR PREFIX DESTDIR

help:		## show this list
	@sed -n 's/^\([a-z_.-]*\):[^#]*## /\1\t/p' Makefile | expand -t 24

setup:		## install the Debian packages that are missing
	@scripts/setup

demo: kernel programs	## build all and run the snapshot demonstration in the guest (ARGS="--clients 8")
	@scripts/demo $(ARGS)

demo-postgres: kernel programs	## PostgreSQL, unmodified: page tables, who dirties what, a snapshot (ARGS=--short)
	@scripts/demo-postgres $(ARGS)

demo-qemu: kernel programs	## a virtual machine of QEMU, unmodified, is copied while it runs (ARGS=--short)
	@scripts/demo-qemu $(ARGS)

check: kernel kernel-vanilla programs	## run every test; ends with N passed, N failed, N skipped
	@scripts/check normal $(ARGS)

check-short: kernel programs	## run the short list on the normal kernel
	@scripts/check --short normal

check-debug: kernel-debug programs	## run the tests on the debug kernel
	@scripts/check debug $(ARGS)

check-distro: kernel-vanilla programs	## run the tests on Debian's own config; writes tests/results/
	@scripts/check-record distro

check-configs: kernel-vanilla programs	## build and test the kernels that have a part of our options
	@scripts/check-configs $(ARGS)

coverage: programs	## which lines of our kernel files the tests execute; writes tests/results/ (ARGS=NAME...)
	@scripts/coverage $(ARGS)

races: programs	## stress tests, tests and fuzzers on the kcsan kernel, which looks for data races
	@scripts/soak --seconds $(or $(SECONDS),600) races

soak: programs	## the tests that take long: soak, fuzzers, stress, trinity, stress-ng (SECONDS=N each, ARGS=PART)
	@scripts/soak $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

fuzz: programs	## run the fuzzers (SECONDS=3600 KERNEL=debug; default 120 s on the normal kernel)
	@scripts/build $(or $(KERNEL),normal)
	@scripts/fuzz --seconds $(or $(SECONDS),120) --kernel $(or $(KERNEL),normal) $(ARGS)

bench: kernel-plain kernel-vanilla programs	## run the benchmarks; writes bench/results/ (ARGS=--again: compares instead)
	@scripts/bench $(ARGS)
	@scripts/plots
	@scripts/readme

bench-quick: kernel-plain kernel-vanilla programs	## a tenth of each benchmark, in some minutes; writes build/bench/
	@scripts/bench --quick $(ARGS)

models: setup		## verify the models of locks and orders with spin (ARGS=walk for one)
	@scripts/models $(ARGS)

shell: kernel programs	## a shell in the guest (Ctrl-A x ends the machine)
	@scripts/guest --timeout 0 -- bash

gdb: kernel	## gdb on a guest that waits at its first instruction
	@scripts/gdb

kernel: setup	## build the kernel with our patches
	@scripts/build normal

kernel-plain: setup	## build it without the switches of the tests, for bench
	@scripts/build plain

kernel-debug: setup	## build it with every checker on
	@scripts/build debug

kernel-vanilla: setup	## build it without our patches
	@scripts/build vanilla

programs: setup	## build tests, samples and benchmarks for the guest
	@scripts/prepare
	@$(MAKE) -f scripts/programs.mk -j2

refresh:	## bring edits in build/linux back (PATCH=name FILE=path for a new hook)
	@flock build/$(addsuffix /,$(filter-out 6.12,$(KVER))).lock scripts/tree refresh

install: setup	## install library, command, tracing tools, manual (PREFIX=/usr/local DESTDIR=)
	@$(MAKE) -C tools/lib/memfd_protect install
	@$(MAKE) -C tools/memfd_protect install
	@install -d $(DESTDIR)$(PREFIX)/sbin $(foreach s,2 7 8,$(DESTDIR)$(PREFIX)/share/man/man$s)
	@install tools/bpf/memfd_protect/*.bt $(DESTDIR)$(PREFIX)/sbin
	@for s in 2 7 8; do install -m 644 man/man$$s/* $(DESTDIR)$(PREFIX)/share/man/man$$s; done

series: setup	## write the series as git am-able mails to out/
	@scripts/series out

deb: setup	## make Debian packages in out/deb/ (FLAVOUR=amd64: with all of Debian's modules)
	@scripts/deb $(ARGS)

check-deb: setup	## install them into a fresh Debian and use them there
	@scripts/check-deb $(ARGS)

each-patch: setup	## build a kernel after each patch of the series (slow)
	@scripts/each-patch

lint: kernel	## checkpatch, sparse, W=1, kernel-doc, shellcheck, SPDX
	@scripts/lint $(ARGS)

compile_commands.json: kernel	## for editors
	@scripts/compile-commands

clean:		## remove everything that was built
	rm -rf build out compile_commands.json

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-postgres demo-qemu check check-short check-debug check-distro check-configs coverage races soak fuzz bench bench-quick models shell gdb \
	kernel kernel-plain kernel-debug kernel-vanilla programs refresh install series deb check-deb each-patch lint compile_commands.json clean
