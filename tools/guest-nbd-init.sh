#!/bin/busybox sh
# /init of the guest of `make guest-nbd`: the kernel's NBD client on what the host-agent serves, here and by Unix sockets.
# Lines with @@ are for tools/guest-nbd.py.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
say() { echo "@@$*"; }
die() {
    say "FAIL $*"
    dmesg | tail -n 20
    tail -n 5 /tmp/*.log
    poweroff -f
}
run() { "$@" > /tmp/said 2>&1 || { cat /tmp/said; die "$*"; }; }
# refused COMMAND: it must fail.
refused() { "$@" > /tmp/said 2>&1 && die "$* was not refused"; true; }
for module in $(cat /modules/order); do
    parameters=''
    [ "$module" != nbd.ko ] || parameters='nbds_max=4'
    # shellcheck disable=SC2086
    insmod "/modules/$module" $parameters || die "insmod $module"
done
mkdir -p /data /then
mount -t ext4 /dev/vda /data || die "the disk"
cd /data || die "the disk"
say BOOTED "$(uname -r)"

# until_said WORDS LOG PID: the server is ready.
until_said() {
    until grep -qs "$1" "$2"; do
        kill -0 "$3" 2> /dev/null || die "no '$1'"
        sleep 0.1
    done
}
# attach DEVICE SOCKET MORE...
attach() {
    device=$1
    socket=$2
    shift 2
    run nbd-client -unix "/tmp/$socket.sock" "$device" "$@"
    tries=0
    until [ "$(blockdev --getsize64 "$device")" = $size ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || die "$device isn't $size bytes"
        sleep 0.1
    done
}
detach() {
    run nbd-client -d "$1"
    while nbd-client -c "$1" > /dev/null; do sleep 0.1; done
}
# What is on the device, not in caches of it.
content() { dd if="$1" bs=1M iflag=direct 2> /tmp/said | md5sum | cut -d ' ' -f 1; }
# Every file's name and content.
files() { (cd "$1" && find . -type f | sort | xargs md5sum | md5sum | cut -d ' ' -f 1); }
# text FILE VERSION LINES: what files are made of.
text() { awk -v f="$1" -v v="$2" -v n="$3" 'BEGIN { for (i = 1; i <= n; i++) printf "file %d version %d line %d\n", f, v, i }'; }
serve() {
    # Not what the one before said.
    rm -f /tmp/serve.log
    host-agent serve --journal "j.$images" --export "disk=disk.$images" --socket /tmp/serve.sock --images "$images" "$@" \
        > /tmp/serve.log 2>&1 &
    server=$!
    until_said '^serving ' /tmp/serve.log $server
}
# image NAME WHEN MORE...: served as it was, by NAME.sock.
image() {
    name=$1
    when=$2
    shift 2
    rm -f "/tmp/$name.log"
    # shellcheck disable=SC2086
    host-agent image serve "j.$images" --volume disk $source --at "$when" --socket "/tmp/$name.sock" "$@" \
        > "/tmp/$name.log" 2>&1 &
    image=$!
    until_said '^serving ' "/tmp/$name.log" $image
}
end() {
    kill -TERM "$1"
    wait "$1" || die "a server ended with $?"
}
# moment NAME: at rest; what the kernel reads now.
moment() {
    run fsfreeze --freeze /mnt
    run host-agent bookmark add "j.$images" "$1"
    content /dev/nbd0 > "/tmp/content.$1"
    files /mnt > "/tmp/files.$1"
    run fsfreeze --unfreeze /mnt
    moments="$moments $1"
    say MOMENT "$images" "$1" "$(cat "/tmp/content.$1")"
}
round() {
    for file in 1 2 3 4 5 6; do text $file "$1" $((100 + file * 150)) > "/mnt/file-$file" || die write; done
    rm -f "/mnt/file-$1"
    text 90 "$1" 30 | dd of=/mnt/file-5 bs=16 seek=40 conv=notrunc 2> /dev/null || die overwrite
}

# everything IMAGES SOURCE PARTS
everything() {
    images=$1
    source=$2
    parts=$3
    moments=''
    size=16777216
    truncate -s $size "disk.$images" "base.$images"
    serve --create --size 96M
    # Several connections: each is a source and a port.
    attach /dev/nbd0 serve -N disk -C 2
    run mkfs.ext4 -q -F -E lazy_itable_init=1 /dev/nbd0
    run mount -t ext4 -o noinit_itable /dev/nbd0 /mnt
    sync
    begun=$(host-agent status "j.$images" --json | sed 's/.*"order": *\([0-9]*\).*/\1/')
    round 1
    moment one
    round 2
    run fstrim /mnt
    moment two
    say SERVED "$images-images, kernel's client with 2 connections; $(host-agent status "j.$images" | sed -n 2p)"

    # Killed: what was synced is there, by the kernel's word.
    round 3
    sync
    files /mnt > /tmp/files.synced
    text 7 3 1000 > /mnt/not-synced
    # The kernel's many lines about it needn't be seen.
    dmesg -n 1
    kill -KILL $server
    wait $server 2> /dev/null
    umount -l /mnt
    nbd-client -d /dev/nbd0 > /dev/null 2>&1
    while nbd-client -c /dev/nbd0 > /dev/null; do sleep 0.1; done
    grep -q nbd0 /proc/mounts && die "still mounted"
    dmesg -n 4
    serve
    attach /dev/nbd0 serve -N disk -C 2
    run mount -t ext4 -o noinit_itable /dev/nbd0 /mnt
    rm -f /mnt/not-synced
    [ "$(files /mnt)" = "$(cat /tmp/files.synced)" ] || die "what was synced before the server was killed isn't there"
    moment killed
    say KILLED "$images-images: what was synced is there"

    # Moments, beside the server and a mounted, changing primary. Read-only:
    for at in $moments; do
        image then "bookmark:$at"
        attach /dev/nbd1 then
        [ "$(blockdev --getro /dev/nbd1)" = 1 ] || die "an image isn't read-only"
        refused dd if=/dev/zero of=/dev/nbd1 bs=4096 count=1 conv=fsync
        run e2fsck -fn /dev/nbd1
        run mount -t ext4 -o ro,noload /dev/nbd1 /then
        text 8 "$RANDOM" 500 > /mnt/more
        sync
        [ "$(files /then)" = "$(cat "/tmp/files.$at")" ] || die "the files of $at are not what they were"
        umount /then
        [ "$(content /dev/nbd1)" = "$(cat "/tmp/content.$at")" ] || die "moment $at is not what it was"
        detach /dev/nbd1
        end $image
    done
    say IMAGES "$images-images:$moments: as they were"

    # Writable, at any write: the file system's own recovery, by the kernel; what is written stays in the overlay.
    last=$(host-agent status "j.$images" --json | sed 's/.*"order": *\([0-9]*\).*/\1/')
    recovered=0
    part=1
    while [ $part -le $parts ]; do
        order=$((begun + (last - begun) * part / parts))
        image overlay "order:$order" --writable --scratch /tmp
        attach /dev/nbd1 overlay
        before=$(content /dev/nbd1)
        dmesg -c > /dev/null
        run mount -t ext4 /dev/nbd1 /then
        dmesg | grep -q 'recovery complete' && recovered=$((recovered + 1))
        text 9 $part 1000 > /then/written
        sync
        sum=$(files /then)
        umount /then
        dmesg | grep -E 'EXT4-fs (error|warning)|I/O error' && die "the kernel complains at order:$order"
        run e2fsck -fn /dev/nbd1
        run mount -t ext4 /dev/nbd1 /then
        [ "$(files /then)" = "$sum" ] || die "what was written to an image isn't there"
        umount /then
        detach /dev/nbd1
        end $image
        image overlay "order:$order"
        attach /dev/nbd1 overlay
        [ "$(content /dev/nbd1)" = "$before" ] || die "an overlay changed the image at order:$order"
        detach /dev/nbd1
        end $image
        part=$((part + 1))
    done
    say OVERLAYS "$images-images: $parts moments from order:$begun to order:$last mounted and written, $recovered after recovery"
    run umount /mnt
    detach /dev/nbd0
    end $server
    run host-agent verify "j.$images"
}
everything after "--base base.after" 4
everything both "--primary disk.both" 2
cd /
umount /data || die "umount"
say DONE
poweroff -f
