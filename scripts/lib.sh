# shellcheck shell=bash
# What the scripts share; sourced, never run. Sets `root` (the checkout) and `target` (cargo's output)
# and goes to `root`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
# Debian keeps mkfs, losetup and the like out of a user's PATH; rustup may have been installed just now.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The Debian package that holds a tool.
package_of() {
    case $1 in
        blkdiscard | fallocate | findmnt | fstrim | partx | prlimit | setpriv) echo util-linux ;;
        btrfs | mkfs.btrfs) echo btrfs-progs ;;
        busybox) echo busybox-static ;;
        cc) echo gcc libc6-dev ;;
        certtool) echo gnutls-bin ;;
        e2fsck | mkfs.ext4) echo e2fsprogs ;;
        fs_mark) echo fsmark ;;
        fusermount3) echo fuse3 ;;
        mkfs.erofs) echo erofs-utils ;;
        mkfs.xfs | xfs_repair) echo xfsprogs ;;
        mksquashfs) echo squashfs-tools ;;
        losetup | mount | umount) echo mount ;;
        musl-gcc) echo musl-tools ;;
        nbdcopy | nbdfuse | nbdinfo) echo libnbd-bin ;;
        nbdsh) echo python3-libnbd ;;
        pg_ctlcluster) echo postgresql ;;
        qemu-img | qemu-io | qemu-nbd) echo qemu-utils ;;
        systemd-analyze) echo systemd ;;
        xz) echo xz-utils ;;
        *) echo "$1" ;;
    esac
}

# Whether packages can be installed: Debian, and root or a sudo that needs no password nobody can type.
can_install() {
    command -v apt-get >/dev/null || return
    [[ $EUID -eq 0 ]] || sudo -n true 2>/dev/null || { [[ -t 0 ]] && command -v sudo >/dev/null; }
}

as_root() {
    if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# need_packages TOOL...: installs the packages of those tools that are missing, and only those.
need_packages() {
    local tool
    local -a missing=() packages=() found
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        missing+=("$tool")
        read -ra found <<<"$(package_of "$tool")"
        packages+=("${found[@]}")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    can_install || die "missing: ${missing[*]}. As root: apt-get install ${packages[*]}"
    echo "Installing ${packages[*]}"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}" \
        </dev/null >"$target/apt.log" 2>&1 || {
        tail -n 5 "$target/apt.log" >&2
        die "apt-get could not install ${packages[*]} (the whole log: $target/apt.log)"
    }
}

# Refreshes apt's lists, once a script.
apt_update() {
    [[ -z ${apt_is_fresh-} ]] || return 0
    as_root apt-get update -q </dev/null >"$target/apt.log" 2>&1 ||
        echo "apt-get update failed, going on with the lists there are: $(tail -n 1 "$target/apt.log")" >&2
    apt_is_fresh=yes
}

# Fails unless there is a Rust as new as Cargo.toml asks for.
need_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    local hint="get it from https://rustup.rs (Debian's own is too old): curl -sSf https://sh.rustup.rs | sh -s -- -y"
    command -v cargo >/dev/null || die "Rust $wanted or newer is needed: $hint"
    have=$(cargo --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1) == "$wanted" ]] ||
        die "Rust $wanted or newer is needed, this is $have: run 'rustup update stable', or $hint"
    need_packages cc
}

# build [PROFILE]: builds target/PROFILE/uzram, by default of release.
build() {
    need_rust
    cargo build --profile "${1-release}" --locked --quiet || die "the build failed"
}

# Whether this user can mount through FUSE and a loop device.
can_mount() {
    [[ $EUID -eq 0 && -c /dev/fuse && -c /dev/loop-control ]] && losetup -f >/dev/null 2>&1
}
