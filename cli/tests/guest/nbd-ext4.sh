# shellcheck shell=dash
# What a Linux guest does with an export over its kernel's own NBD driver. HOST_PORT and EXPORT come
# from the test; /dev/vda is a tar of real files.

device=/dev/nbd0

step() {
    echo "guest: $*"
}

hashes() {
    (cd /mnt/files && find . -type f -exec sha256sum {} + | sort -k 2)
}

step "attach, over four connections"
nbd-client -N "$EXPORT" 10.0.2.2 "$HOST_PORT" "$device" -block-size 4096 -connections 4
blocks=$(cat /sys/block/nbd0/size)
step "$((blocks / 2048)) MiB, discard up to $(cat /sys/block/nbd0/queue/discard_max_bytes)"

step "make ext4 and fill it"
mkfs.ext4 -q -m 0 "$device"
mount -t ext4 "$device" /mnt
mkdir /mnt/files
tar -x -f /dev/vda -C /mnt/files
hashes >/tmp/written
step "$(wc -l </tmp/written) files, $(du -sm /mnt/files | cut -f 1) MiB"

step "unmount, check, mount again"
umount /mnt
e2fsck -f -n "$device"
# Nothing may come from the guest's own cache.
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 "$device" /mnt
hashes >/tmp/read
cmp /tmp/written /tmp/read
step "every file reads back as it was written"

step "remove and trim"
rm -r /mnt/files
sync
fstrim -v /mnt
umount /mnt
e2fsck -f -n "$device"
step "discard the whole device"
blkdiscard "$device"
nbd-client -d "$device"
