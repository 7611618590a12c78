#!/bin/busybox sh
# /init of the guest of `make cosim` and `make cosim-faults`: everything that an operator of a card does, with the
# host-agent as it is built. Lines with @@ are for tools/cosim.py.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
stty -echo < /dev/console
say() { echo "@@$*"; }
die() { say "FAIL $*"; dmesg | tail -n 20; sync; poweroff -f; }
run() { echo "# $*"; "$@" 2> /tmp/said || { cat /tmp/said; die "$*"; }; }
# refused TEXT COMMAND: it must fail, and say TEXT.
refused() {
    text=$1
    shift
    echo "# $* (must be refused: $text)"
    "$@" > /tmp/said 2>&1 && die "$* was not refused"
    grep -q "$text" /tmp/said || { cat /tmp/said; die "$* does not say '$text'"; }
}
# hear WORD: waits for the host.
hear() { read -r answer; [ "$answer" = "$1" ] || die "answer '$answer' instead of $1"; }
slower=$(sed 's/.*slower=\([0-9]*\).*/\1/' /proc/cmdline)
mode=$(sed 's/.*mode=\([a-z]*\).*/\1/' /proc/cmdline)
kills=$(sed 's/.*kills=\([0-9]*\).*/\1/' /proc/cmdline)
resets=$(sed 's/.*resets=\([0-9]*\).*/\1/' /proc/cmdline)
say BOOTED "$(uname -r)"

# An IOMMU, but no module yet: this must be said, with what mends it.
host-agent card list > /tmp/list || die "card list"
cat /tmp/list
grep -q 'modprobe vfio-pci' /tmp/list || die "card list doesn't say that vfio-pci is missing"
for module in $(cat /modules/order); do
    # The initiator looks for its targets when it is loaded.
    [ "$module" = aoe.ko ] || insmod "/modules/$module" || die "insmod $module"
done
mkdir -p /data
mount -t ext4 /dev/vda /data || die "the disk"
echo 8 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

run host-agent card bind
run host-agent card list
run host-agent card info
run host-agent card selftest --slower "$slower"
say SELFTEST passed

volumes=$(cat /data/volumes)
card=$(sed -n 's/^\(0000:[^ ]*\) .*/\1/p' /tmp/list)
# drain MORE...: drains in the background until further notice.
drain() {
    # What the one before said isn't this one's.
    rm -f /tmp/drain
    # shellcheck disable=SC2086
    host-agent card drain --journal /data/journal $volumes --slower "$slower" --flush-period 200 \
        --progress-durable "$@" > /tmp/drain 2>&1 &
    drain=$!
    until grep -qs '^draining' /tmp/drain; do
        kill -0 $drain 2> /dev/null || { cat /tmp/drain; die "card drain"; }
        sleep 0.1
    done
}
# ended CODE: the drain has ended with that exit code.
ended() {
    wait $drain
    code=$?
    grep -v '^durable' /tmp/drain | sed 's/^/  /'
    [ $code = "$1" ] || die "card drain ended with $code and not with $1"
}

# again: drains once more, into a journal that must have everything that was reported durable.
again() {
    durable=$(sed -n 's/^durable order:\([0-9]*\) .*/\1/p' /tmp/drain | tail -n 1)
    drain "$@"
    found=$(sed -n 's/.*goes on after \([0-9,]*\) entr.*/\1/p' /tmp/drain | tail -n 1 | tr -d ,)
    [ "$found" -ge "${durable:-0}" ] || die "order:$durable was reported durable, and the journal has $found"
    say READY
}

if [ "$mode" = way ]; then
    # The way to primary: this host's own initiator, on port 3 of the card that it drains.
    options='--host-port 3 --unknown-after 500 --quarantine 1000'
    # shellcheck disable=SC2086
    drain --create --size 64M $options
    ip link set eth0 mtu 9000 up || die eth0
    insmod /modules/aoe.ko || die aoe
    disk=/dev/etherd/e2.0
    tries=0
    until [ -b $disk ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || die "no $disk"
        echo > /dev/etherd/discover
        sleep 0.5
    done
    truncate -s "$(sed 's/.*=//' /data/volumes)" /tmp/base
    of="/data/journal --volume 2.0 --primary $disk"
    # What the host's page cache has of the disk other sources don't know of.
    dd if=$disk of=/dev/null bs=4k count=16 2> /dev/null || die "reading $disk"
    say READY
    hear bookmark
    run host-agent bookmark add /data/journal then
    say BOOKMARKED
    hear rollback
    # shellcheck disable=SC2086
    run host-agent restore $of --base /tmp/base --at bookmark:then --in-place --through-card
    say ROLLED back
    hear undo
    # shellcheck disable=SC2086
    refused discard host-agent restore $of --base /tmp/base --undo --through-card
    # shellcheck disable=SC2086
    run host-agent restore $of --base /tmp/base --undo --through-card --force
    say UNDONE
    hear kill
    kill -KILL $drain
    ended 137
    say KILLED
    # shellcheck disable=SC2086
    again $options
    # shellcheck disable=SC2086
    run host-agent resync $of --base /tmp/base --through-card
    say RESYNCED
    hear unknown
    # shellcheck disable=SC2086
    run host-agent resync $of --unknown --through-card
    run host-agent status /data/journal
    say READBACK
    hear stop
    kill -TERM $drain
    ended 0
    run host-agent verify /data/journal
    dmesg | grep -i 'DMAR: \[' && die "the IOMMU reported faults"
    umount /data
    say DONE
    poweroff -f
fi

drain --create --size 64M
refused 'another process has the card' host-agent card registers
say READY

if [ "$mode" = faults ]; then
    # Killed in the middle of traffic, which goes on without it.
    n=0
    while [ $n -lt "$kills" ]; do
        hear kill
        kill -KILL $drain
        ended 137
        say KILLED
        [ $n != 0 ] || refused "didn't end in order" host-agent card selftest --slower "$slower"
        again
        n=$((n + 1))
    done
    # Reset behind its back, in the middle of traffic: it says so, and brings the card up again.
    n=0
    while [ $n -lt "$resets" ]; do
        hear reset
        ups=$(grep -c '^draining' /tmp/drain)
        echo 1 > "/sys/bus/pci/devices/$card/reset" || die "the kernel can't reset the function"
        until [ "$(grep -c '^draining' /tmp/drain)" -gt "$ups" ]; do
            kill -0 $drain 2> /dev/null || { cat /tmp/drain; die "card drain"; }
            sleep 0.1
        done
        grep -q 'was reset while it was in use' /tmp/drain || die "it doesn't say that the card was reset"
        say RESET
        say READY
        n=$((n + 1))
    done
fi

hear stop
kill -TERM $drain
ended 0
run host-agent card info
run host-agent verify /data/journal
say DRAINED

if [ "$mode" = system ]; then
    umount /data
    say DONE
    poweroff -f
fi

if [ "$mode" != sample ]; then
    # The host takes the card away: the agent stops in order by itself.
    drain
    host-agent card unbind || die "card unbind"
    ended 0
    grep -q 'wants the card back' /tmp/drain || die "it wasn't asked to let go"
    run host-agent card bind
    say UNBOUND
fi

if [ "$mode" = faults ]; then
    truncate -s 8M /tmp/base
    refused gap host-agent restore /data/journal --volume 1.0 --base /tmp/base --at end --to /tmp/image
else
    while read -r name order; do
        for volume in $(grep -o '[0-9]*\.[0-9]*=' /data/volumes | tr -d =); do
            truncate -s 8M /tmp/base
            run host-agent restore /data/journal --volume $volume --base /tmp/base --at "order:$order" --to /tmp/image --force
            say IMAGE "$name" $volume "$(sha256sum /tmp/image | cut -d ' ' -f 1)"
        done
    done < /data/moments
fi
dmesg | grep -i 'DMAR: \[' && die "the IOMMU reported faults"
umount /data
say DONE
poweroff -f
