#!/bin/busybox sh
# /init of the initiator's guest of `make system`: Linux's aoe on two ports of the card, a file system, a database.
# Lines with @@ are for tools/system.py.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
stty -echo < /dev/console
say() { echo "@@$*"; }
die() { say "FAIL $*"; dmesg | tail -n 20; poweroff -f; }
hear() { read -r answer; [ "$answer" = "$1" ] || die "answer '$answer' instead of $1"; }
for module in $(cat /modules/order); do
    [ "$module" = aoe.ko ] || insmod "/modules/$module" || die "insmod $module"
done
for port in eth0 eth1; do ip link set $port mtu 9000 up || die $port; done
say BOOTED "$(uname -r)"
hear go
insmod /modules/aoe.ko || die aoe
disk=/dev/etherd/e1.0
# Both paths, so that both are used.
paths() { cat '/sys/block/etherd!e1.0/netif' 2> /dev/null | tr ',' '\n' | grep -c eth; }
tries=0
until [ -b $disk ] && [ "$(paths)" = 2 ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || die "$disk by $(paths) paths"
    echo > /dev/etherd/discover
    sleep 0.5
done
say DISCOVERED "$disk by $(cat '/sys/block/etherd!e1.0/netif')"
mkfs.ext4 -q -F -m 0 -b 1024 -N 256 -J size=1 -O ^resize_inode -E lazy_itable_init=1,lazy_journal_init=1,nodiscard $disk \
    || die mkfs
sync
say MADE
mount -t ext4 -o noatime,noinit_itable $disk /mnt || die mount
# text FILE VERSION LINES: what files are made of.
text() { awk -v f="$1" -v v="$2" -v n="$3" 'BEGIN { for (i = 1; i <= n; i++) printf "file %d version %d line %d\n", f, v, i }'; }
sql() { echo "$1" | sqlite3 -bail /mnt/db || die "sqlite3: $1"; }
sql "create table rows(id integer primary key, round integer, text text);"
for round in 1 2 3; do
    for file in 1 2 3 4 5 6 7 8; do text $file $round $((100 + file * 40)) > /mnt/file-$file || die write; done
    rm -f /mnt/file-$((round * 2))
    text 90 $round 30 | dd of=/mnt/file-7 bs=16 seek=40 conv=notrunc 2> /dev/null || die overwrite
    for transaction in 1 2; do
        sql "begin; with recursive n(i) as (select 1 union all select i + 1 from n where i < 40)
             insert into rows(round, text) select $round, 'row ' || i || ' of transaction $transaction' from n; commit;"
    done
    sql "update rows set text = text || ' changed' where id % 7 = $round;"
    sync
    echo 3 > /proc/sys/vm/drop_caches
    [ "$(sql 'select count(*) from rows;')" = $((round * 80)) ] || die "the database lost rows"
    say ROUND $round
done
umount /mnt || die umount
say DONE
poweroff -f
