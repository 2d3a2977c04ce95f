# shellcheck shell=dash
# What a Linux guest does with a disk of ours: ext4, real files, discards. ATTACH from the test says
# how it gets the disk; /dev/vda is a tar of the files. For the NBD driver of the guest's kernel the
# export is EXPORT on HOST_PORT, and with TLS /dev/vda has the certificates as well.

step() {
    echo "guest: $*"
}

die() {
    step "FAILED: $*"
    exit 1
}

# secure CERTIFICATES: options of nbd-client.
secure() {
    dir=/tmp/certificates/$1
    echo "-enable-tls -tlshostname localhost -cacertfile $dir/ca-cert.pem"
    if [ -e "$dir/client-key.pem" ]; then
        echo "-certfile $dir/client-cert.pem -keyfile $dir/client-key.pem"
    fi
}

# attach OPTION...: connects $device.
attach() {
    nbd-client -N "$EXPORT" 10.0.2.2 "$HOST_PORT" "$device" -block-size 4096 "$@"
}

# refused OPTION...: attaches nothing that can be used.
refused() {
    if attach "$@" >/tmp/said 2>&1; then
        die "attached with '$*'"
    fi
    step "refused: $(tail -n 1 /tmp/said)"
    [ "$(cat /sys/block/nbd0/size)" = 0 ] || die "$device has a size"
}

hashes() {
    (cd /mnt/files && find . -type f -exec sha256sum {} + | sort -k 2)
}

case $ATTACH in
    nbd)
        device=/dev/nbd0
        step "attach, over four connections"
        attach -connections 4
        ;;
    tls)
        device=/dev/nbd0
        mkdir /tmp/certificates
        tar -x -f /dev/vda -C /tmp/certificates anonymous client stranger
        step "whom the server does not know, or who does not know it, stays out"
        refused
        # shellcheck disable=SC2046 # several words
        refused $(secure anonymous)
        # shellcheck disable=SC2046 # several words
        refused $(secure stranger)
        step "attach, with TLS"
        # shellcheck disable=SC2046 # several words
        attach $(secure client)
        ;;
    virtio)
        device=/dev/vdb
        ;;
esac

discards=/sys/block/${device#/dev/}/queue/discard_max_bytes
step "$(($(blockdev --getsize64 "$device") >> 20)) MiB, discard up to $(cat "$discards")"

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
if [ -n "${HOST_PORT-}" ]; then
    nbd-client -d "$device"
fi
