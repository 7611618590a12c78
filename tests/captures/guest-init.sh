#!/bin/busybox sh
# /init of the guest. Runs the workload on both volumes at once, and stops at named moments,
# quiesced, until the host has answered on the serial console.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
stty -echo < /dev/console
set=$(sed 's/.*workload=\([a-z]*\).*/\1/' /proc/cmdline)

say() { echo "@@$*"; }
die() { say "FAIL $*"; sleep 1; poweroff -f; }
ask() { say "$*"; read -r answer; [ "$answer" = go ] || die "answer '$answer' to $*"; }
# moment NAME MOUNTED WHAT...: an idle gap before and after, so that any clock tells them apart
moment() { sync; sleep 1; ask MOMENT "$@"; sleep 1; }

mods=$(cat /modules/order)
for m in $mods; do
    [ $m = aoe.ko ] || insmod /modules/$m || die "insmod $m"
done
ip link set eth0 mtu 1500 up || die eth0
ip link set eth1 mtu 9000 up || die eth1
sleep 1
ask READY "$(uname -r)"       # the host starts the targets and answers
insmod /modules/aoe.ko || die aoe
n=0
until [ -b /dev/etherd/e1.0 ] && [ -b /dev/etherd/e1.1 ]; do
    n=$((n+1)); [ $n -lt 100 ] || die "no volumes"; sleep 0.1
done
sleep 1
dev() { echo /dev/etherd/e1.$1; }

# both STEP: the step on both volumes at once
both() {
    ( "$@" 0 ) & a=$!
    ( "$@" 1 ) & b=$!
    wait $a || die "$* 0"
    wait $b || die "$* 1"
}

# text VOLUME FILE VERSION LINES [FIRST]: what files are made of; says where it belongs
text() {
    awk -v o=$1 -v f=$2 -v v=$3 -v n=$4 -v s=${5:-1} \
        'BEGIN { for (i = s; i < s + n; i++) printf "volume 1.%d file %d version %d line %d\n", o, f, v, i }'
}
name() { echo /mnt/$1/data/file-$2; }
write_files() {  # FROM TO VERSION LINES VOLUME
    for f in $(seq $1 $2); do text $5 $f $3 $(($4 + f % 7 * $4 / 8)) > $(name $5 $f) || return 1; done
}
patch() {        # FILE VERSION LINES OFFSET VOLUME: overwrites a piece from OFFSET * 16 bytes on, in place
    text $5 $1 $2 $3 $4 | dd of=$(name $5 $1) bs=16 seek=$4 conv=notrunc 2>/dev/null
}
direct() {       # FILE VERSION SECTOR SECTORS VOLUME: sectors past the page cache, in place
    text $5 $1 $2 400 > /tmp/direct-$5
    /sbin/dd if=/tmp/direct-$5 of=$(name $5 $1) bs=512 seek=$3 count=$4 conv=notrunc oflag=direct status=none
}
mount_vol() { mount -t ext4 -o noatime,noinit_itable $(dev $1) /mnt/$1; }
umount_vol() { umount /mnt/$1; }
verify() {       # FILE VOLUME: read back through a cold cache; the file must be readable
    md5sum $(name $2 $1) > /dev/null
}
cold() { sync; echo 3 > /proc/sys/vm/drop_caches; }


# ---------------------------------------------------------------- sizes
if [ $set = small ]; then
    L=30; N=6; M=10; STALL=3200; STALL_FILES=3
    mkfs_0="-b 1024 -N 64 -J size=1 -E lazy_journal_init=1,lazy_itable_init=1,nodiscard,hash_seed=00000000-0000-4000-8000-0000000000a0"
    mkfs_1="-b 1024 -N 64 -J size=1 -E lazy_journal_init=1,lazy_itable_init=1,nodiscard,hash_seed=00000000-0000-4000-8000-0000000000a1"
else
    L=420; N=70; M=100; STALL=2500; STALL_FILES=20
    mkfs_0="-b 1024 -N 512 -J size=1 -E lazy_journal_init=0,lazy_itable_init=0,nodiscard,hash_seed=00000000-0000-4000-8000-0000000000b0"
    mkfs_1="-b 4096 -N 512 -J size=4 -E lazy_journal_init=0,lazy_itable_init=0,nodiscard,hash_seed=00000000-0000-4000-8000-0000000000b1"
fi

# ---------------------------------------------------------------- steps
make_fs() {
    [ $1 = 0 ] && opts=$mkfs_0 || opts=$mkfs_1
    mkfs.ext4 -q -F -m 0 -O ^resize_inode -U 00000000-0000-4000-8000-00000000001$1 -L vol1.$1 $opts $(dev $1)
}
first() { mkdir /mnt/$1/data && write_files 1 $N 1 $L $1; }
change() {       # overwrite whole files and pieces of files, append, rename, delete
    write_files 1 $((N / 3)) 2 $L $1 &&
    for f in $(seq $((N / 3 + 1)) 2 $((N / 3 * 2))); do patch $f 2 $((L / 4)) $((L / 2)) $1 || return 1; done &&
    text $1 $N 2 $L $((L + 1)) >> $(name $1 $N) &&
    mv $(name $1 $((N - 1))) $(name $1 $((N - 1))).renamed &&
    rm $(name $1 $((N - 2)))
}
more() { write_files $((N + 1)) $M 1 $L $1; }
direct_writes() {
    direct 1 3 0 1 $1 && direct 1 4 1 1 $1 && direct 1 5 0 2 $1 && direct 2 3 1 1 $1
}
again() { write_files 1 2 6 $L $1; }
stalled() { write_files $((N + 1)) $((N + STALL_FILES)) 2 $L $1; }
disaster() { rm -rf /mnt/$1/data; }
after() {
    mkdir /mnt/$1/data && write_files $((M + 1)) $((M + N / 2)) 1 $L $1 &&
    text $1 0 1 $L > /mnt/$1/where-is-my-data
}

moment start 0 "volumes discovered, nothing written"
both make_fs
moment made 0 "mkfs.ext4 on both volumes"
both mount_vol
both first
sync
both umount_vol
moment first-files 0 "files 1 to $N written, version 1; unmounted"
both mount_vol
both change
sync
cold
both verify 1
both verify 2
both umount_vol
moment changed 0 "files overwritten (whole and in part), appended to, renamed, deleted; unmounted, remounted, read back, unmounted"
both mount_vol
both more
sync
both direct_writes
ask STALL 0 $STALL            # the host stops the target of volume 1.0 for a while
both stalled
sync
ask STALL 1 $STALL            # and that of volume 1.1
both again
sync
both umount_vol
moment before-disaster 0 "more files, direct overwrites of single sectors, files rewritten while a target didn't answer for ${STALL} ms; unmounted: this is the state that one wants back"
both mount_vol
cold
both verify 2
both disaster
moment disaster 1 "rm -rf of everything, synced, still mounted"
both after
sync
both umount_vol
moment final 0 "new files over the freed blocks, unmounted for good"
say DONE
sleep 1
poweroff -f
