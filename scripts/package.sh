#!/usr/bin/env bash
# Builds the packages in target/package: uzram_VERSION_ARCH.deb and uzram-VERSION.ARCH.rpm. Two builds of one commit are the
# same, byte for byte.
#
#   package.sh             builds them
#   package.sh try         also installs the .deb in Debian 12 and 13, uses it there, and removes it (root)
#
# cargo-deb and cargo-generate-rpm are installed to target/tools if they are missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly out=$root/target/package tools=$target/tools
PATH=$tools/bin:$PATH
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH LC_ALL=C

# need_tool NAME VERSION: a cargo command.
need_tool() {
    command -v "cargo-$1" >/dev/null && return
    echo "Installing cargo-$1"
    cargo install --quiet --locked --root "$tools" "cargo-$1" --version "$2"
}

# The files that the binary makes, and the units as they are once installed.
prepare() {
    local unit
    rm -rf "$out"
    mkdir -p "$out/man" "$out/completions" "$out/systemd"
    "$binary" man "$out/man"
    for shell in bash zsh fish; do "$binary" completions "$shell" >"$out/completions/$shell"; done
    # The script has the path of the program that printed it.
    sed -i "s|$binary|uzram|g" "$out"/completions/*
    for unit in cli/systemd/uzram*; do
        sed 's|/usr/local/bin/|/usr/bin/|' "$unit" >"$out/systemd/${unit##*/}"
    done
}

build_packages() {
    # Nothing of this machine stays in the binary.
    export RUSTFLAGS="--remap-path-prefix=$root=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    export CARGO_TARGET_DIR=$target/dist
    echo "Building"
    cargo build --quiet --locked --profile dist --package uzram-cli
    binary=$CARGO_TARGET_DIR/dist/uzram
    prepare
    ln -sfn dist "$CARGO_TARGET_DIR/release"
    cargo deb --quiet --no-build --no-strip --package uzram-cli --output "$out"
    cargo generate-rpm --package cli --target-dir "$CARGO_TARGET_DIR" --output "$out"
    (cd "$out" && sha256sum ./*.deb ./*.rpm)
}

# try_on SUITE: what somebody does who has just heard of it.
try_on() {
    local suite=$1 chroot began
    chroot=$(mktemp -d /var/tmp/uzram-package.XXXXXX)
    # shellcheck disable=SC2064 # The chroot of now.
    trap "leave '$chroot'" EXIT
    echo "Trying on $suite"
    debootstrap --variant=minbase "$suite" "$chroot" >"$out/debootstrap-$suite.log" 2>&1 ||
        die "debootstrap $suite failed: $out/debootstrap-$suite.log"
    mount -t proc proc "$chroot/proc"
    mount -t sysfs sysfs "$chroot/sys"
    mount --rbind /dev "$chroot/dev"
    mount --make-rslave "$chroot/dev"
    cp "$out"/*.deb "$chroot/uzram.deb"
    began=$EPOCHREALTIME
    chroot "$chroot" sh -euxc '
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /uzram.deb e2fsprogs
        mkdir -p /mnt/scratch
        uzram mount --size 1G --mem-limit 64M --backing /var/tmp/scratch.spill /mnt/scratch
        cp -a /usr/bin /mnt/scratch
        sync -f /mnt/scratch
        diff -r /usr/bin /mnt/scratch/bin
        uzram list
        uzram umount /mnt/scratch
        uzram man /tmp >/dev/null
        test -s /etc/uzram.toml
        apt-get remove -q -y uzram
        ! command -v uzram
        test -s /etc/uzram.toml
        dpkg --purge uzram
        ! test -e /etc/uzram.toml
    ' >"$out/try-$suite.log" 2>&1 || {
        tail -n 20 "$out/try-$suite.log" >&2
        die "$suite: $out/try-$suite.log has all of it"
    }
    awk -v suite="$suite" -v a="$began" -v b="$EPOCHREALTIME" \
        'BEGIN { printf "%s: installed, mounted, used, removed and purged in %.0f s\n", suite, b - a }'
    leave "$chroot"
    trap - EXIT
}

leave() {
    umount --recursive --lazy "$1/dev" "$1/sys" "$1/proc" 2>/dev/null || true
    rm -rf --one-file-system "$1"
}

need_rust
need_tool deb 3.8.0
need_tool generate-rpm 0.21.1
binary=
build_packages
if [[ ${1-} == try ]]; then
    need_packages debootstrap
    for suite in bookworm trixie; do try_on "$suite"; done
fi
