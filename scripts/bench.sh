#!/usr/bin/env bash
# Measures uzram and its peers side by side: in one run, in turns, several rounds; what counts are
# the ratios.
#
# usage: bench.sh WHAT [--out DIR] [--rounds N] [--quick]
#   WHAT   engine     the library against its codec alone, on one thread and two, small and large
#          scale      one lock for the whole pool against shards, and large devices
#          density    memory taken for what is stored, against the kernel's zram, if /dev/zram0 is free
#          pools      zsmalloc, zbud and z3fold beside one another
#          writeback  a device past its limit against one without, plain files, LRUs, and the kernel's
#                     zram in the guest of the tests, if that is there
#          fuse       the block device of `uzram attach` against the kernel's zram, and against a FUSE
#                     handler that does nothing (root)
#          fsmark     fs_mark on `uzram mount` against the kernel's zram, ext4 and btrfs (root)
#          build      a software build on the same (root)
#          nbd        the NBD server against `nbdkit memory`
#          origin     a device over an image against qemu-nbd and `nbdkit file` over the same; its
#                     database needs root
#   --rounds  how often each is run, by default 3
#   --quick   one short round, to see that it works
#   --out     where raw figures (JSON) and charts (SVG) go, by default target/bench/WHAT
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
    engine | scale | density | pools) tools=() ;;
    writeback) tools=(fio nbdcopy) ;;
    fuse) tools=(fio losetup mount) ;;
    fsmark) tools=(fs_mark losetup mkfs.btrfs mkfs.ext4 mount) ;;
    build) tools=(losetup mkfs.btrfs mkfs.ext4 mount) ;;
    nbd) tools=(fio nbdkit nbdcopy openssl) ;;
    origin) tools=(fio losetup mkfs.ext4 mount nbdfuse nbdkit qemu-nbd) ;;
    *) usage ;;
esac

need_packages python3 "${tools[@]}"
build
exec python3 -B "scripts/bench/$what.py" --uzram "$target/release/uzram" --out "$target/bench/$what" "$@"
