# SPDX-License-Identifier: GPL-2.0-only
#
# The programs that run in the guest, in build/bin: tests, samples, benchmarks,
# and those of the kernel's own selftests that must give the same results as on
# a kernel without our patches.  Usage: make -f scripts/programs.mk (make programs).

TOP := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
BUILD := $(TOP)/build$(if $(filter-out 6.12,$(KVER)),/$(KVER))
LINUX := $(BUILD)/linux
SELF := $(LINUX)/tools/testing/selftests
HDR := $(BUILD)/usr/include
BIN := $(BUILD)/bin

CC := ccache gcc
CFLAGS := -fmax-errors=3 -O2 -g -Wall -pthread -D_GNU_SOURCE -U_FORTIFY_SOURCE
WARN := -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	-Wno-clobbered
CPPFLAGS := -MMD -MP -isystem $(HDR) -I$(SELF)
LDLIBS := -Wl,--as-needed -luring -lnuma -lcap -lrt -lm

# Ours are compiled where they are in the kernel tree: they include its headers.
OURS := $(patsubst $(TOP)/tools/testing/selftests/memfd/%.c,%, \
	$(wildcard $(TOP)/tools/testing/selftests/memfd/memfd_protect*.c))
SHARE := $(filter-out ptshare_preload, $(patsubst $(TOP)/tools/testing/selftests/mm/%.c,%, \
	$(wildcard $(TOP)/tools/testing/selftests/mm/ptshare*.c)))
GUP := $(patsubst $(TOP)/tools/testing/selftests/mm/%.c,%, \
	$(wildcard $(TOP)/tools/testing/selftests/mm/gup_*.c))
BENCH := $(patsubst $(TOP)/bench/%.c,%,$(wildcard $(TOP)/bench/*.c))
MM := uffd-unit-tests mkdirty madv_populate
KVM := demand_paging_test dirty_log_perf_test kvm_page_table_test access_tracking_perf_test
FUZZ := memfd_fuzz mapping_fuzz
SAMPLES := $(if $(wildcard $(TOP)/samples/memfd_protect/Makefile),samples)

all: $(addprefix $(BIN)/,$(OURS) $(SHARE) $(GUP) ptshare_preload.so ptshare_mount_static $(BENCH) $(FUZZ) memfd_test $(MM) $(KVM:%=kvm/%)) $(SAMPLES)

$(OURS:%=$(BIN)/%): $(BIN)/%: $(SELF)/memfd/%.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) $(WARN) $(CFLAGS) -o $@ $< $(LDLIBS)

$(SHARE:%=$(BIN)/%): $(BIN)/%: $(SELF)/mm/%.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) $(WARN) $(CFLAGS) -o $@ $< $(LDLIBS)

# A program that no library of the C library's can get in front of
$(BIN)/ptshare_mount_static: $(SELF)/mm/ptshare_mount_test.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) $(WARN) $(CFLAGS) -static -o $@ $<

$(GUP:%=$(BIN)/%): $(BIN)/%: $(SELF)/mm/%.c $(SELF)/mm/vm_util.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) $(WARN) $(CFLAGS) -o $@ $(filter %.c,$^) $(LDLIBS)

$(BIN)/ptshare_preload.so: $(SELF)/mm/ptshare_preload.c | $(BIN)
	$(CC) $(WARN) $(CFLAGS) -shared -fPIC -o $@ $<

$(BENCH:%=$(BIN)/%): $(BIN)/%: $(TOP)/bench/%.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) -Wextra $(CFLAGS) -o $@ $< $(LDLIBS)

# It runs the demonstration.
$(BIN)/gate: | $(SAMPLES)

$(FUZZ:%=$(BIN)/%): $(BIN)/%: $(TOP)/tools/testing/fuzz/%.c $(HDR)/.installed | $(BIN)
	$(CC) $(CPPFLAGS) $(WARN) $(CFLAGS) -o $@ $(filter %.c,$^) $(LDLIBS)
$(FUZZ:%=$(BIN)/%): $(addprefix $(TOP)/tools/testing/fuzz/,fuzz.c worker.c fuzz.h worker.h)
$(BIN)/memfd_fuzz: $(wildcard $(TOP)/tools/testing/fuzz/memfd_*.[ch])

$(BIN)/memfd_test: $(SELF)/memfd/memfd_test.c $(SELF)/memfd/common.c $(HDR)/.installed | $(BIN)
	$(CC) -isystem $(HDR) $(CFLAGS) -D_FILE_OFFSET_BITS=64 -w -o $@ $(filter %.c,$^) $(LDLIBS)

$(MM:%=$(BIN)/%): $(BIN)/%: $(SELF)/mm/%.c $(HDR)/.installed | $(BIN)
	$(CC) -isystem $(HDR) -I$(SELF) -I$(LINUX) -idirafter $(LINUX)/tools/include/uapi $(CFLAGS) -w \
		-o $@ $(filter %.c,$^) $(LDLIBS)
$(BIN)/uffd-unit-tests: $(SELF)/mm/uffd-common.c
$(MM:%=$(BIN)/%): $(SELF)/mm/vm_util.c \
	$(wildcard $(SELF)/mm/thp_settings.c $(SELF)/mm/hugepage_settings.c)

# By their own Makefile: they have a library
$(BIN)/kvm/built: $(wildcard $(SELF)/kvm/*.c $(SELF)/kvm/lib/*.c $(SELF)/kvm/lib/*/*) $(HDR)/.installed
	mkdir -p $(@D)
	$(MAKE) -s -C $(SELF)/kvm OUTPUT=$(@D) ARCH=x86_64 CC="$(CC) -w" \
		KHDR_INCLUDES="-isystem $(HDR)" $(KVM:%=$(@D)/%)
	touch $@
$(KVM:%=$(BIN)/kvm/%): $(BIN)/kvm/built ;

# All of the kernel's own, as they are without our patches: for tests/kernel_selftests,
# which make soak runs.
# Not all of them compile in each kernel: 6.12's khugepaged does not.
VSELF := $(BUILD)/vanilla/tools/testing/selftests
$(BIN)/selftests/built: $(wildcard $(VSELF)/mm/*.[ch] $(VSELF)/memfd/*.[ch]) $(HDR)/.installed
	mkdir -p $(@D)/mm $(@D)/memfd
	for dir in mm memfd; do \
		$(MAKE) -s -k -C $(VSELF)/$$dir OUTPUT=$(@D)/$$dir ARCH=x86_64 CC="$(CC) -w" TEST_GEN_MODS_DIR= \
			KHDR_INCLUDES="-isystem $(HDR)" >$(@D)/$$dir.log 2>&1 || echo "not all of selftests/$$dir compile"; \
	done
	test -x $(@D)/mm/cow -a -x $(@D)/memfd/memfd_test
	cp $(VSELF)/mm/*.sh $(@D)/mm
	touch $@

samples: $(HDR)/.installed | $(BIN)
	@$(MAKE) -C $(TOP)/samples/memfd_protect UAPI=$(HDR) OUT=$(BIN)

# Headers keep their times when they do not change.
$(HDR)/.installed: FORCE
	@$(MAKE) -s -C $(LINUX) O=$(LINUX)/obj-headers INSTALL_HDR_PATH=$(BUILD)/headers \
		headers_install >/dev/null
	@mkdir -p $(HDR)
	@rsync -rc --delete --exclude=.installed --itemize-changes \
		$(BUILD)/headers/include/ $(HDR)/ | grep -q . && touch $@ || [ -e $@ ] || touch $@

$(BIN):
	@mkdir -p $@

FORCE:
.PHONY: all samples FORCE
.SILENT:
-include $(wildcard $(BIN)/*.d)
