#!/usr/bin/env bash
# The fast gate: format, lints and docs, every warning an error.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_rust
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 ||
        die "cargo $component is missing: rustup component add ${component/fmt/rustfmt}"
done

cargo fmt --all --check
scripts/layers.sh
need_packages python3
scripts/circles.py
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
# The scheduler's locks are larger than the ones that are shipped.
cargo clippy --quiet --locked --lib --tests -- --cfg shuttle -D warnings -A clippy::large_enum_variant
scripts/features.sh
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps

# What SECURITY.md says of attackers is shown by tests that are there.
grep '^|' SECURITY.md | grep -owE '[a-z0-9]+(_[a-z0-9]+)+' | while read -r name; do
    grep -rq --include='*.rs' "fn $name(" src cli tests || die "SECURITY.md names a test that is not there: $name"
done

if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh scripts/bench/*.sh .ci/run cli/tests/guest/{init,*.sh}
else
    echo "shellcheck is not installed: the scripts were not checked" >&2
fi
echo "check: all clean"
