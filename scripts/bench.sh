#!/usr/bin/env bash
# Measures uzram and its peers side by side: in one run, in turns, several rounds; what counts are
# the ratios.
#
# usage: bench.sh WHAT [--out DIR] [--rounds N] [--quick]
#   WHAT   nbd        the NBD server against `nbdkit memory`
#          density    memory taken for what is stored, against the kernel's zram, if /dev/zram0 is free
#          scale      one lock for the whole pool against shards, and large devices
#          writeback  a device past its limit against one without, plain files, LRUs, and the kernel's
#                     zram in the guest of the tests, if that is there
#   --out  where raw figures (JSON) and charts (SVG) go, by default target/bench/WHAT
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    sed -n '/^# usage/,/^[^#]/s/^# \{0,1\}//p' "$root/scripts/bench.sh" >&2
    exit 2
}

[[ $# -ge 1 ]] || usage
what=$1
shift
case $what in
    density | scale) tools=() ;;
    nbd) tools=(fio nbdkit nbdcopy openssl) ;;
    writeback) tools=(fio nbdcopy) ;;
    *) usage ;;
esac

need_packages python3 "${tools[@]}"
build
exec python3 -B "scripts/bench/$what.py" --uzram "$target/release/uzram" --out "$target/bench/$what" "$@"
