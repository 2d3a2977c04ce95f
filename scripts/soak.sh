#!/usr/bin/env bash
# The long versions of tests that run short in scripts/test.sh.
#
# usage: soak.sh WHAT [AMOUNT]
#   device MINUTES   writers, readers, discards, evictions, limits that change and a backing that fails
#                    now and then, all at once on one device; every page is verified (30)
#   simulation SEEDS a device under a seeded scheduler, over a backing and an image that fail by the same
#                    seed, saved and restored meanwhile; 9000 requests a seed (1000)
#   witnesses MINUTES
#                    fio, stress-ng, fsx, SQLite and PostgreSQL on ext4, btrfs and xfs, on a device that
#                    evicts all the time, checking what they wrote (6)
#   kills ROUNDS     kill -9 of the server at any moment under a busy file system (200)
#   power ROUNDS     a server over an image, killed at any moment; the image is held against the record of
#                    what was acknowledged and flushed (500)
#   simulated-deaths NUMBER
#                    a process dies at any store to the memory of its device, and the device is adopted (1000000)
#   attack ROUNDS    hostile clients, images, files and directories: what scripts/test.sh tries of them a few
#                    times at random is tried ROUNDS times, and each parser is fuzzed for a minute (20000)
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    sed -n 's/^# \{0,1\}//; 4,/^set/ { /^set/d; p }' "$0" >&2
    exit 2
}

# ignored TEST_BINARY TEST [CARGO_OPTION...]: runs one test that is ignored otherwise.
ignored() {
    need_rust
    cargo test --locked --quiet --workspace --test "$1" "${@:3}" -- --ignored --exact --nocapture "$2"
}

[[ $# -ge 1 && $# -le 2 && ${2-1} =~ ^[1-9][0-9]*$ ]] || usage
case $1 in
    device) UZRAM_SOAK_SECONDS=$((${2-30} * 60)) ignored soak as_long_as_asked --release ;;
    simulation)
        need_rust
        UZRAM_SEEDS=${2-1000} RUSTC_WORKSPACE_WRAPPER=$root/scripts/with-shuttle \
            cargo test --locked --quiet --lib -- simulation::what_is_read --nocapture
        ;;
    witnesses)
        need_packages btrfs e2fsck findmnt fio mkfs.xfs mount pg_ctlcluster python3 setpriv stress-ng
        need_rust
        cargo install --quiet --locked --root "$target/tools" fsx
        UZRAM_FSX=$target/tools/bin/fsx UZRAM_SOAK_SECONDS=$((${2-6} * 60)) ignored e2e witnesses::as_long_as_asked
        ;;
    power) UZRAM_SOAK_ROUNDS=${2-500} ignored origin power_cut::as_often_as_asked ;;
    kills) UZRAM_SOAK_ROUNDS=${2-200} ignored mount kills::as_many_kills_as_asked ;;
    simulated-deaths)
        need_rust
        UZRAM_DEATHS=${2-1000000} UZRAM_SEED=$(date +%s) \
            cargo test --locked --quiet --release --lib -- deaths:: --nocapture
        ;;
    attack)
        need_rust
        export UZRAM_ATTACK_ROUNDS=${2-100000}
        cargo test --locked --quiet --test nbd -- hostile tls
        cargo test --locked --quiet --test control
        cargo test --locked --quiet --lib -- image:: spill:: restore::
        cargo test --locked --quiet --package uzram-cli --test cli
        [[ $(uname -m) == x86_64 ]] || exit 0
        for corpus in fixtures/fuzz/*/; do
            scripts/fuzz.sh "$(basename "$corpus")" 60
        done
        ;;
    *) usage ;;
esac
