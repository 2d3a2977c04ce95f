# shellcheck shell=dash
# What a guest makes of a server that restarts with an empty disk under a mounted file system. That
# costs it the connection: nbd-client's -persist does not help, because a kernel as new as this one
# ends NBD_DO_IT without an error when a connection is lost, which nbd-client takes for a goodbye.
# What must hold is that nothing hangs, and that the same device takes the new disk. The test
# restarts the server when BELL_PORT is called, and hangs up when it is there again.

device=/dev/nbd0

step() {
    echo "guest: $*"
}

die() {
    step "FAILED: $*"
    exit 1
}

attach() {
    nbd-client -N "$EXPORT" 10.0.2.2 "$HOST_PORT" "$device" -block-size 4096
}

# Makes a file system that holds a copy of /tmp/random.
fill() {
    mkfs.ext4 -q "$device"
    mount -t ext4 "$device" /mnt
    cp /tmp/random /mnt/file
    sync
}

dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null
attach
fill

step "the server restarts"
nc 10.0.2.2 "$BELL_PORT" </dev/null
if dd if=/tmp/random of=/mnt/lost conv=fsync 2>/tmp/said; then
    die "written to a disk that is gone"
fi
step "$(tail -n 1 /tmp/said)"
umount /mnt
nbd-client -d "$device"

step "attach the same device again"
attach
dd if="$device" of=/tmp/read bs=1M count=4 iflag=direct 2>/dev/null
dd if=/dev/zero of=/tmp/zeros bs=1M count=4 2>/dev/null
cmp /tmp/zeros /tmp/read || die "it is not the new server's empty disk"
fill
umount /mnt
e2fsck -f -n "$device"
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 "$device" /mnt
cmp /tmp/random /mnt/file
umount /mnt
nbd-client -d "$device"
