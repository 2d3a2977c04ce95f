# shellcheck shell=dash
# What `uzram attach` makes of the kernel's NBD driver, and how every verb sees it. /dev/vda is a tar
# of the program and its libraries.

tar -x -f /dev/vda -C /
mkdir -p /run

step() {
    echo "guest: $*"
}

die() {
    step "FAILED: $*"
    exit 1
}

# says WORDS COMMAND...: the command must fail and say so.
says() {
    words=$1
    shift
    if "$@" >/tmp/said 2>&1; then
        die "$* succeeded"
    fi
    grep -q -F -e "$words" /tmp/said || die "$*: $(cat /tmp/said)"
}

connected() {
    [ -e /sys/block/nbd0/pid ]
}

mounted() {
    grep -q ' /mnt ' /proc/mounts
}

serve() {
    mkfifo /tmp/ready
    uzram serve dev --size 64M >/tmp/ready &
    server=$!
    read -r ready </tmp/ready
    rm /tmp/ready
    [ "$ready" = ready ] || die "not ready"
}

# Serves, attaches, makes a file system and mounts it, by hand.
up() {
    serve
    device=$(uzram attach dev)
    [ "$device" = /dev/nbd0 ] || die "attached as $device"
    connected || die "not connected"
    mkfs.ext4 -q "$device"
    mount -t ext4 "$device" /mnt
    echo data >/mnt/file
    sync
}

step "what is mounted or attached is left alone, and said to be"
up
uzram list | grep -q ' /mnt$' || die "$(uzram list)"
says "umount /mnt first" uzram stop dev
says "umount /mnt first" uzram reset dev
says "umount /mnt first" uzram detach dev
says "uzram detach dev" uzram umount /mnt
umount /mnt
uzram list | grep -q ' /dev/nbd0$' || die "$(uzram list)"
says "uzram detach dev" uzram stop dev
says "uzram detach dev" uzram reset dev
says "already" uzram attach dev

step "a connection made since is not ours"
cp /run/uzram/dev/nbd-device /tmp/note
uzram detach dev
! connected || die "still connected"
says "not attached" uzram detach dev
nbd-client -unix /run/uzram/dev/nbd.sock /dev/nbd0 -N dev -b 4096
cp /tmp/note /run/uzram/dev/nbd-device
says "not attached" uzram detach dev
connected || die "no longer connected"
nbd-client -d /dev/nbd0
uzram stop dev
wait "$server"

step "a server that does not answer does not hold up its users"
serve
uzram attach dev --timeout 2 >/dev/null
kill -STOP "$server"
begun=$(cut -d. -f1 /proc/uptime)
! dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 2>/dev/null || die "it answered"
took=$(($(cut -d. -f1 /proc/uptime) - begun))
[ "$took" -lt 30 ] || die "it took $took s"
kill -CONT "$server"
uzram stop --force dev
wait "$server"
! connected || die "still connected"

step "a stop by force leaves nothing"
up
uzram stop --force dev
wait "$server"
! mounted || die "still mounted"
! connected || die "still connected"
! dmesg | grep 'nbd0.*error' || die "the file system was cut off"

step "nor does a kill"
up
kill -KILL "$server"
wait "$server" || true
uzram detach dev
! mounted || die "still mounted"
! connected || die "still connected"
[ -z "$(ls /run/uzram)" ] || die "left: $(ls /run/uzram)"
step "done"
