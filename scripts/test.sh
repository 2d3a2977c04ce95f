#!/usr/bin/env bash
# Installs what the tests need and runs every one of them. Arguments go to cargo test.
#
# As root all of them run; without root those that mount, and without /dev/fuse those that serve over
# FUSE, say SKIPPED.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
need_packages btrfs busybox certtool cpio e2fsck findmnt fallocate fio flock fs_mark fuse2fs fusermount3 losetup mandoc mkfs.erofs mkfs.xfs \
    mksquashfs mount nbd-client nbdcopy nbdfuse nbdinfo nbdkit nbdsh openssl partx prlimit python3 qemu-img qemu-io \
    rsync strace stress-ng systemd-analyze tmux xz

# What the guest is made of; only here are apt's lists known to be fresh.
if [[ $(uname -m) == x86_64 && ! -d $target/guest/kernel ]]; then
    echo "Fetching the guest's kernel and QEMU"
    if can_install; then apt_update; fi
    cli/tests/guest/fetch.sh "$target/guest"
fi

# Only a run of everything: the fuzzers are built with instruments of their own.
if [[ $# -eq 0 && $(uname -m) == x86_64 ]]; then
    for corpus in fixtures/fuzz/*/; do
        fuzzed=$(basename "$corpus")
        echo "Fuzzing $fuzzed for 10 s"
        scripts/fuzz.sh "$fuzzed" 10 >"$target/fuzz-$fuzzed.log" 2>&1 || {
            tail -n 40 "$target/fuzz-$fuzzed.log" >&2
            die "fuzzing $fuzzed found something"
        }
    done
fi

if [[ $# -eq 0 ]]; then
    echo "Running the models"
    scripts/models.sh 25 >"$target/models.log" 2>&1 || {
        tail -n 60 "$target/models.log" >&2
        die "a model failed"
    }
fi

exec cargo test --locked --workspace --no-fail-fast "$@"
