# shellcheck shell=dash
# Swap on a disk of ours, under a job that has a quarter of the memory it needs: all it stores stays
# what it was. Then the server is killed (by whoever answers at BELL_PORT): what was swapped out is
# lost to the job, and nothing else is; the machine goes on, and swaps to a new server.

device=/dev/nbd0
files=48
job=/sys/fs/cgroup/job

step() {
    echo "guest: $*"
}

die() {
    step "FAILED: $*"
    dmesg | tail -n 30
    exit 1
}

# content N: about 2 MB like no other's, page for page.
content() {
    printf '%4096d' "$1"
    head -c "$1" /dev/zero
    cat /bin/busybox
}

# Without a time-out the kernel waits for ever for what was under way when the server died.
attach() {
    nbd-client -N "$EXPORT" 10.0.2.2 "$HOST_PORT" "$device" -block-size 4096 -swap -timeout 60
    mkswap "$device" >/dev/null
    swapon -d "$device"
}

swapped_kib() {
    awk -v device="$device" '$1 == device { print $4 }' /proc/swaps
}

# in_job COMMAND...: with all memory it touches counted against the job's limit.
in_job() {
    # shellcheck disable=SC2016 # for the shell that is started
    sh -c 'echo $$ >'"$job"'/cgroup.procs && exec "$@"' sh "$@"
}

mkdir -p /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir "$job"
echo $((files * 2 / 4))M >"$job/memory.max"

# Files in memory are what is swapped: of a size to be counted on, and readable when others are not.
mkdir /memory
mount -t tmpfs -o size=300m memory /memory

step "fill memory"
attach
for i in $(seq "$files"); do
    content "$i" | in_job tee "/memory/$i" >/dev/null
    content "$i" | sha256sum | sed "s|-|/memory/$i|" >>/tmp/sums
done
[ "$(swapped_kib)" -gt $((files * 1024)) ] || die "swapped: $(cat /proc/swaps)"
step "swapped out: $(swapped_kib) KiB"
for round in 1 2; do
    in_job sha256sum -c /tmp/sums >/tmp/said || die "round $round: $(grep -v OK /tmp/said)"
done
grep -q '^oom_kill 0$' "$job/memory.events" || die "$(cat "$job/memory.events")"

step "the server is killed"
in_job sh -c 'while :; do cat /memory/*; done >/dev/null 2>&1' &
nc 10.0.2.2 "$BELL_PORT" </dev/null
lost=0
for i in $(seq "$files"); do
    timeout 60 cat "/memory/$i" >/dev/null 2>&1 || lost=$((lost + 1))
done
[ "$lost" -gt 0 ] || die "nothing was lost with the swap"
step "$lost of $files files cannot be read"
echo 1 >"$job/cgroup.kill"
wait || true
until grep -q '^populated 0$' "$job/cgroup.events"; do
    sleep 1
done

step "the machine goes on"
content 1 | sha256sum >/tmp/outside
content 1 >/tmp/file
sha256sum </tmp/file | cmp - /tmp/outside || die "a file outside of the job has changed"
grep -l '^State:.D' /proc/[0-9]*/status >/tmp/stuck 2>/dev/null || true
[ ! -s /tmp/stuck ] || die "stuck: $(cat /tmp/stuck)"

step "and swaps to a new server"
rm -f /memory/*
umount /memory
swapoff "$device" || die "the dead swap cannot be taken off"
nbd-client -d "$device"
attach
mount -t tmpfs -o size=300m memory /memory
for i in $(seq "$files"); do
    content "$i" | in_job tee "/memory/$i" >/dev/null
done
in_job sha256sum -c /tmp/sums >/tmp/said || die "$(grep -v OK /tmp/said)"
rm -f /memory/*
umount /memory
swapoff "$device"
nbd-client -d "$device"
step "done"
