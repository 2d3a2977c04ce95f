#!/usr/bin/env bash
# Runs tests under a tool that sees what they cannot.
#
# usage: sanitize.sh address|thread|valgrind [CARGO_TEST_OPTION...]
#   address    out of bounds, used after it was freed, leaked: every test that needs no guest
#   thread     races: the engine, NBD, FUSE; what is known and harmless is in fixtures/tsan.supp
#   valgrind   memory that was never written, and leaks: the arena and the allocators over it
#
# Options choose other tests. The stable compiler is told to accept the sanitizers' flags.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -ge 1 ]] || die "usage: sanitize.sh address|thread|valgrind [CARGO_TEST_OPTION...]"
tool=$1
shift
need_rust
triple=$(rustc -vV | sed -n 's/^host: //p')

# under_sanitizer OPTION...: the tests, built with the sanitizer in every crate but the standard library.
flags=(-Zsanitizer="$tool" -Cunsafe-allow-abi-mismatch=sanitizer)
under_sanitizer() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=${flags[*]} CARGO_TARGET_DIR=$target/$tool \
        exec cargo test --locked --target "$triple" "$@"
}

case $tool in
    address)
        # Left out: guests, whose kernels these are not about; two that measure memory, of which the
        # sanitizer takes its own; one that ends in the middle of everything; and clap's way to man
        # pages, which leaks.
        [[ $# -gt 0 ]] || set -- --workspace --no-fail-fast -- --skip guest --skip help_teaches \
            --skip a_thousand_connections --skip more_than_the_limit_comes_back \
            --skip a_second_signal_exits_at_once
        under_sanitizer "$@"
        ;;
    thread)
        export TSAN_OPTIONS="suppressions=$root/fixtures/tsan.supp history_size=7 ${TSAN_OPTIONS-}"
        # Memory is mapped through libc, so that the sanitizer knows what is mapped where something else was.
        flags+=(--cfg=rustix_use_libc)
        # Left out: one that asks for more addresses than the sanitizer leaves; one that looks whether memory
        # is locked, which the sanitizer has libc not do; and one that measures memory.
        [[ $# -gt 0 ]] || set -- -p uzram --no-fail-fast --lib --test model --test soak --test linearizability \
            --test nbd --test fuse --test control -- --skip there_is_as_much_room_to_grow \
            --skip is_locked_not_dumped --skip a_thousand_connections
        under_sanitizer "$@"
        ;;
    valgrind)
        need_packages valgrind
        [[ $# -gt 0 ]] || set -- memory:: pool:: codec::
        runner=CARGO_TARGET_${triple//-/_}_RUNNER
        export "${runner^^}=valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite"
        # Each case takes a hundred times as long.
        PROPTEST_CASES=${PROPTEST_CASES-8} exec cargo test --locked --lib -- --test-threads=1 "$@"
        ;;
    *) die "no such tool: $tool" ;;
esac
