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
scripts/architecture.py
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
# The scheduler's locks are larger than the ones that are shipped.
cargo clippy --quiet --locked --lib --tests -- --cfg shuttle -D warnings -A clippy::large_enum_variant
scripts/features.sh
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps

# Both packages can be released as they are, without what is for those who develop them.
if ! said=$(cargo package --quiet --locked --offline --workspace --no-verify --allow-dirty 2>&1) || [[ -n $said ]]; then
    die "a package is not clean: $said"
fi
for package in uzram uzram-cli; do
    extra=$(cargo package --quiet --locked --offline --package "$package" --allow-dirty --list | grep -E '^(fixtures|fuzz|scripts|\.ci)/' || true)
    [[ -z $extra ]] || die "$package has files in it that are of no use to anyone: $extra"
done

# What dependencies may be, where the tool for that is installed (cargo install cargo-deny).
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --offline --log-level error check bans licenses sources
else
    echo "cargo deny is not installed: licences and sources of dependencies were not checked" >&2
fi

# What SECURITY.md says of attackers is shown by tests that are there.
grep '^|' SECURITY.md | grep -owE '[a-z0-9]+(_[a-z0-9]+)+' | while read -r name; do
    grep -rq --include='*.rs' "fn $name(" src cli tests || die "SECURITY.md names a test that is not there: $name"
done

if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh scripts/bench/*.sh .ci/run cli/tests/guest/{init,*.sh} cli/package/debian/*
else
    echo "shellcheck is not installed: the scripts were not checked" >&2
fi
echo "check: all clean"
