#!/bin/busybox sh
# /init of the guests of `make postgres`: a database on an ext4 on a disk that the host-agent serves, or that it serves as it
# was at a moment. Lines with @@ are for tools/postgres.py.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mkdir -p /dev/shm /pg
mount -t tmpfs -o mode=1777 none /dev/shm
say() { echo "@@$*"; }
die() {
    say "FAIL $*"
    dmesg | tail -n 20
    tail -n 20 /tmp/*
    poweroff -f
}
run() { "$@" > /tmp/said 2>&1 || die "$*"; }
word() { sed "s/.*$1=\([a-z0-9]*\).*/\1/" /proc/cmdline; }
mode=$(word mode)
every=$(word every)
for module in $(cat /modules/order); do insmod "/modules/$module" || die "insmod $module"; done
# find SERIAL: the disk that has it.
serial() { cat "/sys/block/$1/serial"; }
find_disk() { for block in $(ls /sys/block | grep ^vd); do [ "$(serial "$block")" != "$1" ] || echo "/dev/$block"; done; }
run mount -t ext4 -o ro "$(find_disk root)" /pg
run mount --rbind /dev /pg/dev
run mount -t proc none /pg/proc
run mount -t tmpfs -o mode=1777 none /pg/tmp
ip link set lo up

# as_owner COMMAND: of the database's, among its files.
as_owner() { chroot /pg /bin/busybox su -s /bin/busybox owner -- sh -c "cd /tmp; $1"; }
start() {
    # Not that of the one before.
    rm -f /tmp/log
    chroot /pg /bin/busybox su -s /bin/busybox owner -- sh -c "exec /programs/postgres -D /data/pgdata" > /tmp/log 2>&1 &
    postgres=$!
    until grep -qs 'ready to accept connections' /tmp/log; do
        kill -0 $postgres 2> /dev/null || die "the database at $1 doesn't start"
        sleep 0.1
    done
}
stop() {
    kill -INT $postgres
    wait $postgres || die "the database at $1 doesn't end"
}
say BOOTED "$mode $(uname -r)"

if [ "$mode" = load ]; then
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    run mount -t ext4 -o discard,noatime "$(find_disk disk)" /pg/data
    start now
    say READY
    # Until its power goes.
    sleep 1000000
fi

counts="select coalesce(string_agg(client || ':' || n || ':' || top, ' ' order by client), '-')
            from (select client, count(*) n, max(number) top from told group by client) each"
sums="select (select count(*) from pgbench_history), (select coalesce(sum(delta), 0) from pgbench_history),
             (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
             (select sum(bbalance) from pgbench_branches)"
part=0
for block in $(ls /sys/block | grep ^vd); do
    name=$(serial "$block")
    [ "$name" != root ] || continue
    dmesg -c > /dev/null
    run mount -t ext4 "/dev/$block" /pg/data
    dmesg | grep -q 'recovery complete' && journal=1 || journal=0
    start "$name"
    grep -q 'redo starts' /tmp/log && redo=1 || redo=0
    checks=none
    part=$((part + 1))
    found=$(as_owner "/programs/psql -h /tmp -U postgres -XAtq -F ' ' -c \"$counts\" -c \"$sums\" postgres") || die "psql at $name"
    [ $((part % every)) != 0 ] || run as_owner "/programs/pg_amcheck -h /tmp -U postgres --heapallindexed postgres"
    stop "$name"
    if [ $((part % every)) = 0 ]; then
        run as_owner "/programs/pg_checksums --check -D /data/pgdata"
        checks=amcheck,checksums
    fi
    run umount /pg/data
    dmesg | grep -E 'EXT4-fs (error|warning)|I/O error' && die "the kernel complains at $name"
    run e2fsck -fn "/dev/$block"
    # shellcheck disable=SC2086
    say FOUND "$name" $journal $redo $checks $found
done
say DONE
poweroff -f
