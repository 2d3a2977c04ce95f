#!/usr/bin/env bash
# Runs the models of races, each with so many seeds, and each without the protection that it is
# about, to see it fail; and the simulation of a whole device over backings and images that fail, with as
# many seeds. A seed that fails is printed with the command that replays it.
#
# usage: models.sh [SEEDS]    100 by default
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seeds=${1-100}
[[ $# -le 1 && $seeds =~ ^[1-9][0-9]*$ ]] || die "usage: models.sh [SEEDS]"
need_rust
UZRAM_SEEDS=$seeds RUSTC_WORKSPACE_WRAPPER=$root/scripts/with-shuttle \
    exec cargo test --locked --quiet --lib -- schedules --show-output
