# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034 # sourced; what is set here is used there
#
# Names that all scripts share.  Source it after `set -euo pipefail`.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
KVERS=(6.12 7.3)			# kernels that the tree is for, the default first
KVER=${KVER:-${KVERS[0]}}
BUILD=$TOP/build
[ "$KVER" = "${KVERS[0]}" ] || BUILD=$TOP/build/$KVER
VANILLA=$BUILD/vanilla		# pristine source
LINUX=$BUILD/linux		# pristine source + our files + patches/
BIN=$BUILD/bin			# programs of the tests, the samples, the benchmarks
HDR=$BUILD/usr/include		# UAPI headers of the patched kernel

# A kernel is built in a directory directly below its source, so that the
# compiler sees the same relative paths everywhere: ccache then hits across
# kernels and across clones.
source_of() { case $1 in vanilla|inner) echo "$VANILLA" ;; *) echo "$LINUX" ;; esac; }
obj_of() { echo "$(source_of "$1")/obj-$1"; }

# All kernels, and those with a part of our options: see scripts/build.
KERNELS=(normal plain debug gcov kcsan distro rt deb vanilla inner noshare noprotect neither)
PARTIAL=(plain noshare noprotect neither)
is_kernel() { [[ " ${KERNELS[*]} " = *" $1 "* ]]; }

# What may hold files of ours, at the path they have in the kernel.
KERNEL_DIRS=(arch Documentation fs include kernel lib mm samples security tools)

# The series, one line each: common/NAME if the patch is the same for all kernels,
# $KVER/NAME if it is not.  Names and order are those of patches/series.
export QUILT_PATCHES=$TOP/patches QUILT_SERIES=$BUILD/.series
patches()
{
	[ ! -f "$QUILT_PATCHES/series" ] || sed 's/#.*//; s/[[:space:]].*//; /^$/d' "$QUILT_PATCHES/series" |
		while read -r p; do
			if [ -f "$QUILT_PATCHES/$KVER/$p" ]; then echo "$KVER/$p"; else echo "common/$p"; fi
		done
}

# Files of ours that go into the kernel tree, tracked or not yet.
our_files()
{
	(cd "$TOP" && git ls-files -co --exclude-standard -- "${KERNEL_DIRS[@]}" |
		while read -r f; do [ -f "$f" ] && echo "$f"; done | sort -u)
}

die() { echo "${0##*/}: $*" >&2; exit 1; }
note() { echo "${0##*/}: $*" >&2; }

# Every script answers -h and --help before it does anything, and tells what is
# wrong with its arguments in one line.
answer_help() { case ${1:-} in -h|--help) usage; exit 0 ;; esac; }
bad_usage() { note "$*; see --help"; exit 2; }
no_arguments() { answer_help "$@"; [ $# -eq 0 ] || bad_usage "takes no arguments, not '$1' either"; }
[[ " ${KVERS[*]} " = *" $KVER "* ]] || bad_usage "KVER is one of ${KVERS[*]}, not '$KVER'"
a_kernel() { is_kernel "$1" || bad_usage "no kernel is called '$1', but ${KERNELS[*]}"; }

# The lines of configs/NAME.config for this kernel: options that NAME-$KVER.config
# mentions are as it says, and "# CONFIG_X is gone" in there drops one.
fragment()
{
	local own=$TOP/configs/$1-$KVER.config
	if [ -f "$own" ]; then
		awk '
			/^(# )?CONFIG_/ { name = $1 == "#" ? $2 : $1; sub(/=.*/, "", name) }
			NR == FNR { if (name) own[name] = 1; name = ""; next }
			!(name in own); { name = "" }' "$own" "$TOP/configs/$1.config"
		grep -v ' is gone$' "$own"
	else
		cat "$TOP/configs/$1.config"
	fi
}

# Runs a command with its output in build/log/NAME.log, shown only on failure.
logged()
{
	local log=$BUILD/log/$1.log
	shift
	mkdir -p "$BUILD/log"
	"$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

# What a file of results begins with: the kernel, its config, the machine
results_header()
{
	local obj
	obj=$(obj_of "$1")
	echo "Results of the tests on the $1 kernel"
	echo "kernel  $(make -s -C "$LINUX" O="$obj" kernelrelease), $(sed -n '1s,^# \(.*/\)\?,,p' "$obj/.fragment")"
	echo "date    $(date -I), commit $(git -C "$TOP" rev-parse --short HEAD)$(git -C "$TOP" diff --quiet HEAD || echo " and changes")"
	echo "machine $(nproc) processors, $("$TOP/scripts/kvm-works" "$obj/arch/x86/boot/bzImage" && echo KVM || echo "QEMU TCG")"
}

# Ends a bpftrace that runs in the background; fails, and shows where it is, if it does not
# end.  0.17 looks for its signal only where that interrupts its wait for events: what comes
# just before leaves it waiting, and so it gets one more there.
end_bpftrace()
{
	local i
	kill -INT "$1"
	for i in {1..400}; do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.1
		if [ "$i" -eq 100 ] && grep -qs '^232 ' "/proc/$1/syscall"; then
			note "bpftrace waits for events in spite of SIGINT: once more"
			kill -INT "$1"
		fi
	done
	echo "bpftrace does not end:"
	cat /proc/"$1"/task/*/{comm,wchan,stack,syscall} || :
	kill -KILL "$1"
	return 1
}
