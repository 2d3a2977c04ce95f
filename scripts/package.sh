#!/usr/bin/env bash
# Builds the packages in target/package: uzram_VERSION_ARCH.deb, uzram-VERSION.ARCH.rpm and uzram-VERSION.cdx.json, which says
# what is in them (CycloneDX); the binary says it, too (cargo audit bin). Two builds of one commit are the same, byte for byte.
#
#   package.sh             builds them
#   package.sh try         also installs the .deb in Debian 12 and 13, uses it there, and removes it (root)
#   package.sh static      a binary that needs no library, for any Linux: target/package/uzram-static
#
# The cargo commands that are missing are installed to target/tools.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly out=$root/target/package tools=$target/tools musl=x86_64-unknown-linux-musl
PATH=$tools/bin:$PATH
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH LC_ALL=C
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
binary=

# need_tool NAME VERSION: a cargo command.
need_tool() {
    command -v "cargo-$1" >/dev/null && return
    echo "Installing cargo-$1"
    cargo install --quiet --locked --root "$tools" "cargo-$1" --version "$2"
}

# build_binary OPTION...: with nothing of this machine in it.
build_binary() {
    export RUSTFLAGS="--remap-path-prefix=$root=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    export CARGO_TARGET_DIR=$target/dist
    echo "Building"
    cargo auditable build --quiet --locked --profile dist --package uzram-cli "$@"
}

# The files that the binary makes, and the units as they are once installed.
prepare() {
    local unit shell
    mkdir -p "$out/man" "$out/completions" "$out/systemd"
    "$binary" man "$out/man"
    for shell in bash zsh fish; do "$binary" completions "$shell" >"$out/completions/$shell"; done
    # The script has the path of the program that printed it.
    sed -i "s|$binary|uzram|g" "$out"/completions/*
    debian_changelog >"$out/changelog"
    for unit in cli/systemd/uzram*; do
        sed 's|/usr/local/bin/|/usr/bin/|' "$unit" >"$out/systemd/${unit##*/}"
    done
}

# Debian's own; the project's is changelog.gz beside it.
debian_changelog() {
    local maintainer
    maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' cli/Cargo.toml)
    printf 'uzram (%s-1) unstable; urgency=medium\n\n  * Built from %s.\n\n -- %s  %s\n' \
        "$version" "$(git rev-parse --short=10 HEAD)" "$maintainer" "$(date -uR -d "@$SOURCE_DATE_EPOCH")"
}

# What the packages are made of. It has no time and no number of its own, so that it is the same next time.
bill_of_materials() {
    cargo cyclonedx --quiet --manifest-path cli/Cargo.toml --format json --override-filename uzram.cdx
    python3 - "$root" <<'END' >"$out/uzram-$version.cdx.json"
import json, sys
text = open("cli/uzram.cdx.json").read().replace("file://" + sys.argv[1], "file://.").replace(sys.argv[1], ".")
bill = json.loads(text)
bill.pop("serialNumber", None)
bill.get("metadata", {}).pop("timestamp", None)
json.dump(bill, sys.stdout, indent=1, sort_keys=True)
END
    # One beside each package of the workspace.
    rm uzram.cdx.json cli/uzram.cdx.json tests/support/uzram.cdx.json
}

build_packages() {
    build_binary
    binary=$CARGO_TARGET_DIR/dist/uzram
    prepare
    ln -sfn dist "$CARGO_TARGET_DIR/release"
    cargo deb --quiet --no-build --no-strip --package uzram-cli --output "$out"
    cargo generate-rpm --package cli --target-dir "$CARGO_TARGET_DIR" --output "$out"
    bill_of_materials
    if command -v lintian >/dev/null; then
        lintian --allow-root --tag-display-limit 0 --fail-on error,warning "$out"/*.deb ||
            die "lintian has objections"
    else
        echo "lintian is not installed: the .deb was not checked" >&2
    fi
    (cd "$out" && sha256sum ./*.deb ./*.rpm ./*.json)
}

build_static() {
    rustup target add "$musl" >/dev/null 2>&1 || die "rustup cannot add $musl"
    need_packages musl-gcc
    build_binary --target "$musl"
    cp "$CARGO_TARGET_DIR/$musl/dist/uzram" "$out/uzram-static"
    (cd "$out" && sha256sum uzram-static)
}

# try_on SUITE: what somebody does who has just heard of it.
try_on() {
    local suite=$1 chroot
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
    [[ ! -e $out/uzram-static ]] || cp "$out/uzram-static" "$chroot/uzram-static"
    chroot "$chroot" sh -eux >"$out/try-$suite.log" 2>&1 <<'END' || {
        export DEBIAN_FRONTEND=noninteractive
        list() { find / -xdev \( -path /proc -o -path /sys -o -path /var/cache -o -path /var/log \) -prune -o -name '*uzram*' -print; }
        list >/before
        date +%s.%N >/began
        apt-get update -q
        apt-get install -q -y --download-only --no-install-recommends /uzram.deb e2fsprogs mount
        date +%s.%N >/fetched
        apt-get install -q -y --no-install-recommends /uzram.deb e2fsprogs mount
        mkdir -p /mnt/scratch
        uzram mount --size 1G --mem-limit 64M --backing /var/tmp/scratch.spill /mnt/scratch
        date +%s.%N >/mounted
        cp -a /usr/bin /mnt/scratch
        sync -f /mnt/scratch
        diff -r --no-dereference /usr/bin /mnt/scratch/bin
        uzram list
        uzram umount /mnt/scratch

        printf '[swap]\nsize = "64M"\nswap-priority = 1\n' >>/etc/uzram.toml
        uzram up --check
        uzram up && uzram down
        uzram serve vm --size 64M --background
        uzram stat vm
        uzram stop vm
        ! test -e /uzram-static || /uzram-static mount --size 64M /mnt/scratch
        ! test -e /uzram-static || /uzram-static umount /mnt/scratch

        test -s /usr/share/man/man1/uzram.1.gz || test ! -e /usr/share/man/man1
        apt-get remove -q -y uzram
        test ! -e /usr/bin/uzram
        test -s /etc/uzram.toml
        dpkg --purge uzram
        rm -rf /run/uzram
        list >/after
        diff /before /after
END
        tail -n 20 "$out/try-$suite.log" >&2
        die "$suite: $out/try-$suite.log has all of it"
    }
    awk -v suite="$suite" '{ at[NR] = $1 } END {
        printf "%s: a disk is mounted %.0f s after the start, %.0f s of them for downloads; used, removed, purged\n",
            suite, at[3] - at[1], at[2] - at[1]
    }' "$chroot"/{began,fetched,mounted}
    leave "$chroot"
    trap - EXIT
}

leave() {
    umount --recursive --lazy "$1/dev" "$1/sys" "$1/proc" 2>/dev/null || true
    rm -rf --one-file-system "$1"
}

need_rust
need_packages python3
need_tool auditable 0.7.7
mkdir -p "$out"
if [[ ${1-} == static ]]; then
    build_static
    exit
fi
need_tool deb 3.8.0
need_tool generate-rpm 0.21.1
need_tool cyclonedx 0.5.9
rm -rf "${out:?}"/{man,completions,systemd,*.deb,*.rpm,*.json}
build_packages
if [[ ${1-} == try ]]; then
    need_packages debootstrap
    for suite in bookworm trixie; do try_on "$suite"; done
fi
