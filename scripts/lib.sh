# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034 # sourced; what is set here is used there
#
# Names that all scripts share.  Source it after `set -euo pipefail`.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=$TOP/build
VANILLA=$BUILD/vanilla		# pristine source
LINUX=$BUILD/linux		# pristine source + our files + patches/
BIN=$BUILD/bin			# programs of the tests, the samples, the benchmarks
HDR=$BUILD/usr/include		# UAPI headers of the patched kernel

# A kernel is built in a directory directly below its source, so that the
# compiler sees the same relative paths everywhere: ccache then hits across
# kernels and across clones.
source_of() { [ "$1" = vanilla ] && echo "$VANILLA" || echo "$LINUX"; }
obj_of() { echo "$(source_of "$1")/obj-$1"; }

# All kernels, and those with a part of our options: see scripts/build.
KERNELS=(normal debug distro rt vanilla noshare noprotect neither)
PARTIAL=(noshare noprotect neither)
is_kernel() { [[ " ${KERNELS[*]} " = *" $1 "* ]]; }

# What may hold files of ours, at the path they have in the kernel.
KERNEL_DIRS=(arch Documentation fs include kernel lib mm samples security tools)

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
a_kernel() { is_kernel "$1" || bad_usage "no kernel is called '$1', but ${KERNELS[*]}"; }

# Runs a command with its output in build/log/NAME.log, shown only on failure.
logged()
{
	local log=$BUILD/log/$1.log
	shift
	mkdir -p "$BUILD/log"
	"$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}
