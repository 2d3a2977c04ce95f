#!/usr/bin/env bash
# Puts what a guest needs into DIR, without installing anything on this machine:
#   DIR/kernel  Debian's cloud kernel and its modules
#   DIR/qemu    QEMU with its libraries and firmware, unless this machine has QEMU; of libraries and firmware that
#               this machine has none is used, as they may go, and are elsewhere
# The packages are downloaded and unpacked, never installed: a kernel does not belong on the user's
# machine, and QEMU's package cannot be installed beside a qemu-utils of another release.
#
# usage: fetch.sh DIR
#        fetch.sh --plan DIR    prints which packages QEMU's are, each with its version, and fetches none
set -euo pipefail

die() {
    echo "guest/fetch.sh: $*" >&2
    exit 1
}

plan=
if [[ ${1-} == --plan ]]; then
    plan=yes
    shift
fi
[[ $# -eq 1 ]] || die "usage: fetch.sh [--plan] DIR"
mkdir -p "$1"
dir=$(cd "$1" && pwd)

[[ $(uname -m) == x86_64 ]] || die "the guest runs on x86-64 only, this is $(uname -m)"
for tool in apt-get apt-cache dpkg flock; do
    command -v "$tool" >/dev/null || die "$tool is missing: the guest is built from Debian packages"
done

# Two tests may get here at once.
exec 9>"$dir/lock"
flock 9

# unpack WHERE PACKAGE[=VERSION]...: the packages' files, complete or not there at all.
unpack() {
    local where=$1 deb
    shift
    rm -rf "$where.part" "$dir/debs"
    mkdir -p "$where.part" "$dir/debs"
    # As root apt would rather download as its own user, who may not be able to write here.
    (cd "$dir/debs" && apt-get -q -o APT::Sandbox::User=root download "$@" >apt.log 2>&1) || {
        cat "$dir/debs/apt.log" >&2
        die "cannot download $*: is the network up, and has 'apt-get update' been run?"
    }
    for deb in "$dir"/debs/*.deb; do
        dpkg -x "$deb" "$where.part"
    done
    rm -rf "$dir/debs"
    mv "$where.part" "$where"
}

# The packages of QEMU, each with its version: all that a simulated installation finds missing where
# nothing is installed. The C library belongs to the loader, which is this machine's.
qemu_packages() {
    local simulated
    : >"$dir/nothing-installed"
    simulated=$(apt-get install --simulate --no-install-recommends -o "Dir::State::status=$dir/nothing-installed" \
        qemu-system-x86 2>&1) || die "apt-get sees no way to get qemu-system-x86: $(tail -n 1 <<<"$simulated")"
    awk '/^Inst / && $2 != "libc6" { print $2 "=" substr($3, 2) }' <<<"$simulated"
}

if [[ -n $plan ]]; then
    qemu_packages
    exit
fi

if [[ ! -d $dir/kernel ]]; then
    meta=linux-image-cloud-amd64
    image=$(apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    [[ -n $image ]] || die "no package $meta: run 'apt-get update' as root; the guest needs Debian's kernel"
    unpack "$dir/kernel" "$image"
fi

if ! command -v qemu-system-x86_64 >/dev/null && [[ ! -d $dir/qemu ]]; then
    packages=$(qemu_packages)
    mapfile -t packages <<<"$packages"
    unpack "$dir/qemu" "${packages[@]}"
fi
