#!/usr/bin/env bash
# Changes the engine in one place at a time (cargo-mutants) and sees whether a test notices: the unit
# tests, for what those miss the models, and for what both miss the tests in tests/, which take longest.
# Prints the rate and what no test noticed. Copies of the tree and the logs are in target/mutants.
#
# usage: mutants.sh [SHARE [FIRST]]
#   SHARE    one mutant of so many, spread evenly over the files (12)
#   FIRST    which of the first SHARE to begin with, 1 by default: each is a sample of its own
#
# MUTANTS_JOBS of them are tested at a time (2).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

share=${1-12} first=${2-1} jobs=${MUTANTS_JOBS-2}
[[ $# -le 2 && $share =~ ^[1-9][0-9]*$ && $first =~ ^[1-9][0-9]*$ && $first -le $share && $jobs =~ ^[1-9]$ ]] ||
    die "usage: mutants.sh [SHARE [FIRST]]"
need_rust
command -v cargo-mutants >/dev/null || {
    PATH=$target/tools/bin:$PATH
    cargo install --quiet --locked --root "$target/tools" cargo-mutants
}
work=$target/mutants

# The engine. Left out is what only tests call: the harness of the allocators, and the proofs of the
# accounting, which notice a mutant or are one.
mutants=(cargo mutants --no-config --colors never
    --file 'src/pool/**' --file 'src/shard/**' --file 'src/engine/**' --file 'src/io/**' --file 'src/maintain/**' --file 'src/spill/**'
    --file 'src/image/**' --file 'src/origin/**' --exclude forge.rs --exclude contents.rs
    --exclude harness.rs --exclude check.rs --exclude-re '::check(_marks|_objects)?\b')

# A build that is quick to make again, and tests of which one that fails ends the run: for that option the
# stable harness is told to accept those that are not stable.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=none
runner=$(rustc -vV | sed -n 's/^host: //p')_runner
runner=CARGO_TARGET_${runner//-/_}
export "${runner^^}=env RUSTC_BOOTSTRAP=1"
until_one_fails=(-Zunstable-options --fail-fast --test-threads 4)

# try NAME JOB OPTION...: tests the mutants in JOB's list, in a tree and a build of its own, and leaves those
# that were missed in it. What comes out is in JOB/NAME.
try() {
    local name=$1 job=$2 status=0
    shift 2
    [[ -s $job/list ]] || return 0
    # All others pass for caught before: a pattern of names lets through some that do not match.
    mkdir -p "$job/$name/mutants.out"
    grep -vxFf "$job/list" "$work/all" >"$job/$name/mutants.out/caught.txt"
    # What takes ten times as long as it does without a mutant hangs, on a busy machine, too.
    TMPDIR=$job/tmp CARGO_TARGET_DIR=$job/build "${mutants[@]}" --dir "$job/tree" --in-place --iterate \
        --output "$job/$name" --timeout-multiplier 10 --minimum-test-timeout 120 --caught --unviable \
        "$@" >"$job/$name.log" 2>&1 || status=$?
    # 2: some were missed; 3: some hung.
    [[ $status == [023] ]] || die "cargo mutants failed, see $job/$name.log"
    cp "$job/$name/mutants.out/missed.txt" "$job/list"
}

# try_all JOB: each pass is over what the one before missed.
try_all() {
    local engine=(device:: engine:: image:: io:: maintain:: origin:: pool:: shard:: spill::) tests=()
    for name in model pools integrity sizes control idle_device; do tests+=("--cargo-arg=--test=$name"); done
    try unit "$1" --cargo-arg=--lib -- -- "${until_one_fails[@]}" "${engine[@]}"
    UZRAM_SEEDS=10 RUSTC_WORKSPACE_WRAPPER=$root/scripts/with-shuttle try models "$1" --cargo-arg=--lib -- -- "${until_one_fails[@]}" schedules
    try integration "$1" "${tests[@]}" -- -- "${until_one_fails[@]}"
}

echo "Listing the mutants"
mkdir -p "$work"
"${mutants[@]}" --list >"$work/all"
awk -v share="$share" -v first="$first" 'NR % share == first % share' "$work/all" >"$work/sample"
echo "Testing $(wc -l <"$work/sample") of them, $jobs at a time"

# Each job is a process group, so that nothing is left of it.
set -m
running=()
end() {
    for pid in "${running[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
    wait
    rm -rf "$work"/job*/{tree,tmp}
}
trap end EXIT
# The builds stay, to be gone on from: the sources are newer.
rm -rf "$work"/job*/{list,tree,tmp,*.log,unit,models,integration}
for ((i = 0; i < jobs; i++)); do
    job=$work/job$i
    mkdir -p "$job"/{tree,tmp}
    git ls-files -z | xargs -0 cp --parents -t "$job/tree"
    awk -v jobs="$jobs" -v i="$i" 'NR % jobs == i' "$work/sample" >"$job/list"
    try_all "$job" &
    running+=($!)
done
for pid in "${running[@]}"; do wait "$pid"; done

# count KIND: how many ended so.
count() {
    find "$work"/job*/*/mutants.out -maxdepth 1 -name "$1.txt" -exec cat {} + | wc -l
}
caught=$(count caught) hung=$(count timeout) missed=$(cat "$work"/job*/list | wc -l)
viable=$((caught + hung + missed))
[[ $viable -gt 0 ]] || die "no mutant of the sample can be built"
echo "No test noticed:"
cat "$work"/job*/list
echo "Noticed: $((caught + hung)) of $viable that can be built ($hung of them hang), $((100 * (caught + hung) / viable))%"
