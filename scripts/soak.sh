#!/usr/bin/env bash
# Writers, readers, discards, evictions, limits that change and a backing that fails now and then,
# all at once on one device; every page is verified, and the accounting in the end.
#
# usage: soak.sh [MINUTES]    30 by default
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

minutes=${1-30}
[[ $# -le 1 && $minutes =~ ^[1-9][0-9]*$ ]] || die "usage: soak.sh [MINUTES]"
need_rust
UZRAM_SOAK_SECONDS=$((minutes * 60)) exec cargo test --locked --quiet --test soak -- --ignored --nocapture
