#!/usr/bin/env bash
# Fuzzes a part with libFuzzer and the address sanitizer, from the corpus in fixtures/fuzz.
#
# usage: fuzz.sh TARGET SECONDS
#   TARGET   negotiation, transmission   what an NBD client sends
#            control                     what comes over the control socket
#            device                      operations on a device, with every allocator
#            pool                        steps on an allocator
#            spill                       a spill file that somebody changes
#            decompressor                bytes that no compressor wrote
#            image                       an image that somebody made, to be restored
#
# What it finds goes to target/fuzz/TARGET. The stable compiler is told to accept the sanitizer's
# flags; cargo-fuzz is not needed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ $# -eq 2 && -d fixtures/fuzz/$1 ]] || die "usage: fuzz.sh TARGET SECONDS; the targets: $(cd fixtures/fuzz && echo *)"
name=$1 seconds=$2
need_rust
need_packages g++
triple=x86_64-unknown-linux-gnu
[[ $(rustc -vV | sed -n 's/^host: //p') == "$triple" ]] || die "the sanitizer is set up for $triple only"

export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
CARGO_TARGET_DIR=$target/fuzz/build cargo build --quiet --locked --release --target "$triple" \
    --manifest-path fuzz/Cargo.toml --bin "$name"

findings=$target/fuzz/$name
mkdir -p "$findings/corpus"
# The first corpus is the one that grows. A run that leaks or takes more than a minute is a failure.
exec "$target/fuzz/build/$triple/release/$name" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
    -max_len=65536 -print_final_stats=1 -verbosity=0 -artifact_prefix="$findings/" "$findings/corpus" \
    "fixtures/fuzz/$name"
