#!/usr/bin/env bash
# Runs a shell script in a guest under QEMU, with Debian's kernel, and returns its exit status; its
# output comes out on stdout. The host's loopback is 10.0.2.2 in the guest.
#
# usage: run.sh [--disk FILE] [--writable FILE] [--nbd URI] DIR SCRIPT [KEY=VALUE...]
#   DIR              where fetch.sh put (or now puts) the kernel and QEMU
#   --disk FILE      a read-only disk in the guest; disks are /dev/vda and on, in the order given
#   --writable FILE  a disk that the guest can write to
#   --nbd URI        a disk that is this export, to which QEMU connects
#   KEY=VALUE        in the script's environment
# GUEST_TIMEOUT (seconds, default 600) bounds the whole run; status 124 if it was not enough,
# 125 if the guest went down without saying how the script ended.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "guest/run.sh: $*" >&2
    exit 125
}

drives=()
while [[ ${1-} == --* && $# -ge 2 ]]; do
    case $1 in
        --disk) drives+=(-drive "file=$2,format=raw,if=virtio,readonly=on") ;;
        --writable) drives+=(-drive "file=$2,format=raw,if=virtio,cache=unsafe") ;;
        --nbd) drives+=(-drive "file=$2,format=raw,if=virtio,discard=unmap") ;;
        *) die "$1 is no option" ;;
    esac
    shift 2
done
[[ $# -ge 2 ]] || die "usage: run.sh [--disk FILE] [--writable FILE] [--nbd URI] DIR SCRIPT [KEY=VALUE...]"
script=$2
"$here/fetch.sh" "$1"
dir=$(cd "$1" && pwd)
shift 2

# Busybox's shell runs its own applets first: name here only what busybox does not have.
programs=(nbd-client mkfs.ext4 e2fsck)
modules=(virtio_pci virtio_net virtio_blk nbd zram lz4 ext4)

work=$(mktemp -d "${TMPDIR:-/tmp}/uzram-guest.XXXXXX")
qemu_pid=
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
    [[ -z $qemu_pid ]] || kill -KILL "$qemu_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 143' TERM INT

# add_program ROOT NAME: a program and the libraries it is linked to, at their own paths.
add_program() {
    local path library
    path=$(command -v "$2") || die "$2 is missing: ./scripts/test.sh installs it"
    install -D "$(readlink -f "$path")" "$1/usr/bin/$2"
    while read -r library; do
        [[ -e $1$library ]] || install -D "$library" "$1$library"
    done < <(ldd "$path" | grep -o '/[^ ]*')
}

# add_modules ROOT RELEASE: the modules and what they depend on.
add_modules() {
    local tree=lib/modules/$2 module line file
    busybox depmod -b "$dir/kernel" "$2"
    mkdir -p "$1/$tree"
    for module in "${modules[@]}"; do
        # "path/module.ko: path/dependency.ko ..."; a module that is built in has no line.
        line=$(grep -E "/$module\.ko[^:/]*:" "$dir/kernel/$tree/modules.dep") || continue
        for file in ${line//:/}; do
            file=${file#/"$tree"/}
            [[ -e $1/$tree/$file ]] || install -D "$dir/kernel/$tree/$file" "$1/$tree/$file"
        done
    done
    find "$1/$tree" -name '*.ko.xz' -exec xz -d {} +
    busybox depmod -b "$1" "$2"
}

pack() {
    (cd "$1" && find . | cpio -o -H newc --quiet)
}

kernels=("$dir"/kernel/boot/vmlinuz-*)
release=${kernels[0]##*/vmlinuz-}

for tool in busybox cpio; do
    command -v "$tool" >/dev/null || die "$tool is missing: ./scripts/test.sh installs it"
done
# The part every run shares is made once.
(
    flock 9
    base=$dir/base.cpio
    if [[ ! -e $base || $base -ot ${BASH_SOURCE[0]} || $base -ot $here/init ]]; then
        root=$work/root
        mkdir -p "$root/bin"
        install -m 755 "$here/init" "$root/init"
        install "$(command -v busybox)" "$root/bin/busybox"
        for program in "${programs[@]}"; do
            add_program "$root" "$program"
        done
        add_modules "$root" "$release"
        pack "$root" >"$base.part"
        mv "$base.part" "$base"
    fi
) 9>"$dir/lock"

mkdir -p "$work/run/job"
cp "$script" "$work/run/job/script"
: >"$work/run/job/env"
for pair in "$@"; do
    printf "%s='%s'\n" "${pair%%=*}" "${pair#*=}" >>"$work/run/job/env"
done
# The kernel unpacks archives that follow each other one after the other.
{ cat "$dir/base.cpio"; pack "$work/run"; } >"$work/initramfs"

if command -v qemu-system-x86_64 >/dev/null; then
    qemu=(qemu-system-x86_64)
else
    libraries=$dir/qemu/usr/lib/x86_64-linux-gnu:$dir/qemu/lib/x86_64-linux-gnu
    qemu=(env "LD_LIBRARY_PATH=$libraries" "$dir/qemu/usr/bin/qemu-system-x86_64"
        -L "$dir/qemu/usr/share/qemu" -L "$dir/qemu/usr/share/seabios")
fi
qemu+=(
    -machine q35 -accel "tcg,thread=multi" -smp 2 -m 512 -nodefaults -display none -no-reboot
    -kernel "${kernels[0]}" -initrd "$work/initramfs"
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"
    -netdev "user,id=net" -device "virtio-net-pci,netdev=net,romfile="
    -serial stdio -serial "file:$work/status"
    "${drives[@]}"
)

: >"$work/status"
timeout --foreground --kill-after=5 "${GUEST_TIMEOUT:-600}" "${qemu[@]}" </dev/null > >(tr -d '\r') &
qemu_pid=$!
ended=0
wait "$qemu_pid" || ended=$?
qemu_pid=
if [[ $ended -eq 124 || $ended -eq 137 ]]; then
    echo "guest/run.sh: not done in ${GUEST_TIMEOUT:-600} s" >&2
    exit 124
fi
status=$(tr -d '\r' <"$work/status" | sed -n 's/^status //p')
[[ -n $status ]] || die "the guest went down before the script ended (QEMU's status $ended)"
exit "$status"
