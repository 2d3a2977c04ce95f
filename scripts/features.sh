#!/usr/bin/env bash
# Checks the library with none of its cargo features and with each alone, and that with none it takes no C
# compiler and no frontend's crates.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
tree=$(cargo tree --locked --package uzram --no-default-features --edges normal,build --prefix none)
if grep -E '^(cc|cmake|bindgen|pkg-config|fuser|rustls|ring|[^ ]*-sys) ' <<<"$tree" | grep -v '^linux-raw-sys '; then
    die "the library without features depends on these"
fi
features=$(sed -n '/^default = /s/.*\[\(.*\)\]/\1/p' Cargo.toml | tr -d '",')
[[ -n $features ]] || die "Cargo.toml names no features"
for feature in '' $features; do
    cargo clippy --quiet --locked --package uzram --no-default-features --features "$feature" -- -D warnings ||
        die "the library does not build with ${feature:-no features} alone"
done
