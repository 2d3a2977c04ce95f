#!/usr/bin/env bash
# Makes docs/top.svg, the README's picture: `uzram top` while real files are copied to a device that spills (root).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

can_mount || die "it needs root, /dev/fuse and a loop device"
need_packages tmux python3 mount
[[ -n ${UZRAM-} ]] || build
uzram=${UZRAM-$target/release/uzram}

work=$(mktemp -d /var/tmp/uzram-picture.XXXXXX)
export UZRAM_RUNDIR=$work/run
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
    tmux -S "$work/tmux" kill-server 2>/dev/null || true
    "$uzram" umount "$work/scratch" >/dev/null 2>&1 || true
    "$uzram" stop --all --force >/dev/null 2>&1 || true
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT

mkdir "$work/scratch"
"$uzram" mount --name scratch --size 2G --mem-limit 256M --backing "$work/spill" "$work/scratch" >/dev/null
"$uzram" serve vm --size 16G --background >/dev/null
tmux -S "$work/tmux" new-session -d -x 100 -y 30 "$uzram top"
cp -a /usr/lib "$work/scratch" 2>/dev/null &
# A picture is worth taking once some of it is spilled.
for _ in {1..600}; do
    sleep 0.2
    spilled=$("$uzram" stat scratch --json | grep -o '"written_back_pages":[0-9]*' | cut -d : -f 2)
    [[ $spilled -lt 40000 ]] || break
done
sleep 2
tmux -S "$work/tmux" capture-pane -p >"$work/screen"
python3 scripts/picture.py "uzram top" <"$work/screen" >docs/top.svg
wait
