# shellcheck shell=dash
# What the kernel's zram writes to its backing device for the data on /dev/vda; /dev/vdb is the
# backing device. Each figure is a line of its own, "NAME WORDS", on stdout.

tell() {
    echo "zram: $*"
}

modprobe lz4 || true
modprobe zram num_devices=1
zram=/sys/block/zram0
size=$(($(cat /sys/block/vda/size) * 512))
# Before the size: neither can be changed after.
echo lz4 >"$zram/comp_algorithm" || echo lzo-rle >"$zram/comp_algorithm"
echo /dev/vdb >"$zram/backing_dev"
echo "$size" >"$zram/disksize"

dd if=/dev/vda of=/dev/zram0 bs=1M conv=fsync 2>/dev/null
tell algorithm "$(sed 's/.*\[\(.*\)\].*/\1/' "$zram/comp_algorithm")"
# shellcheck disable=SC2046 # one line of words
tell mm_stat $(cat "$zram/mm_stat")

sectors_written() {
    awk '{ print $7 }' /sys/block/vdb/stat
}
before=$(sectors_written)
echo all >"$zram/idle"
echo idle >"$zram/writeback"
sync
tell sectors $(($(sectors_written) - before))
# shellcheck disable=SC2046 # one line of words
tell bd_stat $(cat "$zram/bd_stat")

# What was written back is what was written.
echo 3 >/proc/sys/vm/drop_caches
cmp /dev/vda /dev/zram0
