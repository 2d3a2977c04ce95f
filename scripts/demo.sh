#!/usr/bin/env bash
# The main job on real files: a 2 GiB device that may hold 256 MiB of memory is filled with far more
# than that, spills by itself, and gives back every byte.
#
# As root with /dev/fuse and a loop device the files live on ext4 on a mounted device; otherwise an
# archive of them is copied over NBD. Scratch files go to TMPDIR, by default /var/tmp.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly SIZE=2G LIMIT=256M STORED_MIB=1400
readonly NAME=demo-$$
readonly ROWS=(orig_data_size compr_data_size mem_used_total mem_used_max mem_limit resident_pages
    written_back_pages same_pages backing_bytes_used backing_bytes_written bd_reads rss_bytes)

uzram=
work=
server=

# shellcheck disable=SC2317 # the trap calls it
clean_up() {
    local status=$?
    trap - EXIT
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        # It promises to be gone in 5 s; no promise should keep this script from ending.
        (sleep 10 && kill -KILL "$server") 2>/dev/null &
        wait "$server" 2>/dev/null || true
        kill %% 2>/dev/null || true
    elif [[ -n $work && -d $work/mnt ]]; then
        "$uzram" umount "$work/mnt" >/dev/null 2>&1 || "$uzram" stop "$NAME" >/dev/null 2>&1 || true
    fi
    [[ -z $work ]] || rm -rf --one-file-system "$work"
    exit "$status"
}

step() { printf '\n\e[1m%s\e[0m\n' "$*" | if [[ -t 1 ]]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }

# timed WHAT COMMAND...: runs it and prints how long it took.
timed() {
    local what=$1 began=$EPOCHREALTIME
    shift
    "$@"
    awk -v what="$what" -v a="$began" -v b="$EPOCHREALTIME" \
        'BEGIN { printf "  %-58s %6.1f s\n", what, b - a }'
}

# The files of this demo, NUL-terminated and relative to /: the toolchain's own, then the machine's,
# until there are STORED_MIB of them.
list_files() {
    local sysroot
    sysroot=$(rustc --print sysroot)
    # find fails at a directory that only root may read.
    { find "$sysroot/lib" "$sysroot/bin" "$sysroot" /usr/lib /usr/bin /usr/share \
        -type f -readable ! -name '*[[:cntrl:]]*' -printf '%s\t%p\0' 2>/dev/null || true; } |
        awk -v RS='\0' -v ORS='\0' -v FS='\t' -v most=$((STORED_MIB << 20)) '
            !seen[$2]++ && (sum += $1) <= most { print substr($2, 2) }'
}

snapshot() { "$uzram" stat "$NAME" --json >"$work/stat.$1"; }

# value KEY SNAPSHOT
value() { grep -o "\"$1\": *[0-9]*" "$work/stat.$2" | grep -o '[0-9]*$'; }

# table SNAPSHOT...: the statistics side by side, bytes in MiB.
table() {
    local row column n
    printf '  %-24s' ''
    printf '%14s' "$@"
    printf '\n'
    for row in "${ROWS[@]}"; do
        printf '  %-24s' "$row"
        for column in "$@"; do
            n=$(value "$row" "$column")
            case $row in
                *_pages | bd_*) printf '%14s' "$n" ;;
                *) printf '%10d MiB' $(((n + (1 << 19)) >> 20)) ;;
            esac
        done
        printf '\n'
    done
}

copy_files() { tar -C / --null -T "$work/list" -cf - | tar -C "$work/mnt" -xf -; }
hash_files() { (cd / && xargs -0 sha256sum <"$work/list" >"$work/sums"); }
compare_files() { (cd "$work/mnt" && sha256sum --check --quiet --strict "$work/sums"); }

through_a_file_system() {
    mkdir "$work/mnt"
    step "\$ uzram mount --size $SIZE --mem-limit $LIMIT --backing $work/spill $work/mnt"
    "$uzram" mount --name "$NAME" --size $SIZE --mem-limit $LIMIT --backing "$work/spill" "$work/mnt"
    local device
    device=$(findmnt -n -o SOURCE --mountpoint "$work/mnt")
    snapshot empty
    step "Copy $(tr -cd '\0' <"$work/list" | wc -c) files, $STORED_MIB MiB, onto it and read them back"
    timed "copied and synced" sync_after copy_files
    snapshot filled
    timed "hashed the originals" hash_files
    umount "$work/mnt"
    mount -o discard "$device" "$work/mnt"
    timed "mounted anew, hashed the copies, every one is the same" compare_files
    snapshot "read_back"
}

sync_after() {
    "$@"
    sync -f "$work/mnt"
}

through_nbd() {
    local uri="nbd+unix:///$NAME?socket=$work/nbd.sock"
    step "\$ uzram serve $NAME --size $SIZE --mem-limit $LIMIT --backing $work/spill --nbd unix:$work/nbd.sock"
    UZRAM_LOG=warn "$uzram" serve "$NAME" --size $SIZE --mem-limit $LIMIT --backing "$work/spill" \
        --nbd "unix:$work/nbd.sock" >"$work/ready" &
    server=$!
    for _ in {1..100}; do
        grep -q '^ready' "$work/ready" && break
        kill -0 "$server" 2>/dev/null || die "the server did not start"
        sleep 0.1
    done
    grep -q '^ready' "$work/ready" || die "the server is not ready after 10 s"
    snapshot empty
    tar -C / --null -T "$work/list" -cf "$work/image"
    step "Copy an archive of $(tr -cd '\0' <"$work/list" | wc -c) files, $STORED_MIB MiB, onto it and read it back"
    timed "copied with nbdcopy" nbdcopy --flush "$work/image" "$uri"
    snapshot filled
    timed "hashed the archive" hash_image
    timed "read back with nbdcopy, the hash is the same" compare_image "$uri"
    snapshot "read_back"
}

hash_image() { sha256sum <"$work/image" >"$work/sums"; }

compare_image() {
    # The device is larger than the archive: the rest is read too, and thrown away.
    nbdcopy "$1" - | { head -c "$(stat -c %s "$work/image")" | sha256sum && cat >/dev/null; } >"$work/sums.read"
    cmp "$work/sums" "$work/sums.read" || die "what came back is not what was written"
}

step "Build"
timed "cargo build --profile demo" build demo
uzram=$target/demo/uzram

scratch=${TMPDIR:-/var/tmp}
work=$(mktemp -d "$scratch/uzram-demo.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM

if can_mount; then
    need_packages mkfs.ext4 findmnt losetup mount
    needed_mib=2048
    run=through_a_file_system
else
    echo "Not root, or no /dev/fuse, or no loop device: going through NBD."
    need_packages nbdcopy
    needed_mib=4096
    run=through_nbd
fi
[[ $(df --output=avail -m "$work" | tail -n 1) -ge $needed_mib ]] ||
    die "$scratch has less than $needed_mib MiB free: set TMPDIR to a directory that has"

list_files >"$work/list"
"$run"

step "What the device says (bytes in MiB)"
table empty filled read_back

limit=$(value mem_limit read_back)
[[ $(value mem_used_max read_back) -le $limit ]] || die "the memory limit was not kept"
[[ $(value written_back_pages read_back) -gt 0 ]] || die "nothing was spilled"
printf '\n%d MiB live in %d MiB of memory (limit %d) and, the coldest, in %d MiB of backing file.\n' \
    $(($(value orig_data_size filled) >> 20)) $(($(value mem_used_total filled) >> 20)) $((limit >> 20)) \
    $(($(value backing_bytes_used filled) >> 20))
