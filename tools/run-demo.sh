#!/bin/sh
# What `make run` does: a real initiator's traffic through the simulated card into a journal, and three
# moments of a volume back out of it. Every command is shown, so that it can be tried by hand.
set -eu
cd "$(dirname "$0")/.."
set_name=${1:-small}
captures=tests/captures/$set_name
out=run
agent=${HOST_AGENT:-target/release/host-agent}
bold=''; plain=''
if [ -t 1 ]; then bold=$(printf '\033[1m'); plain=$(printf '\033[0m'); fi

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '$ %s\n' "$*"; "$@"; }
# The size of a volume, and how many writes there were at a moment, from moments.json.
ask() { python3 -c "import json,sys; m=json.load(open('$captures/moments.json')); print($1)"; }

if [ -z "${HOST_AGENT:-}" ]; then cargo build --release --quiet --package host-agent; fi
rm -rf "$out"
mkdir -p "$out"
for volume in 1.0 1.1; do
    truncate -s "$(ask "next(c['size'] for c in m['captures'] if c['volume']=='$volume')")" "$out/$volume.base"
    cp --sparse=always "$out/$volume.base" "$out/$volume.img"
done

say "1. Linux made file systems on two AoE volumes; a capture of that goes through the simulated card."
show "$agent" replay --capture "0=$captures/port0.pcap.gz" --capture "1=$captures/port1.pcap.gz" \
    --primary "1.0=$out/1.0.img" --primary "1.1=$out/1.1.img" \
    --journal "$out/journal" --create --size 128M

say "2. Every write is in the journal, in the order in which it was admitted."
show "$agent" log "$out/journal" --from order:100 --to order:104
"$agent" log "$out/journal" --json > "$out/log.json"
show "$agent" verify "$out/journal"

say "3. Three moments of volume 1.0, each checked against a naive model and by e2fsck."
for moment in made before-disaster final; do
    order=$(ask "sum(v['writes'] for x in m['moments'] if x['name']=='$moment' for v in x['volumes'].values())")
    printf '\n%s: %s\n' "$moment" "$(ask "next(x['what'] for x in m['moments'] if x['name']=='$moment')")"
    show "$agent" restore "$out/journal" --volume 1.0 --base "$out/1.0.base" --at "order:$order" --to "$out/$moment.img"
    python3 tools/naive-image.py "$captures" "$out/log.json" 1.0 "$order" "$out/$moment.img"
    if command -v e2fsck > /dev/null; then
        e2fsck -fn "$out/$moment.img" > "$out/$moment.e2fsck" 2>&1 || { cat "$out/$moment.e2fsck"; exit 1; }
        echo "  e2fsck -fn: clean"
    else
        echo "  e2fsck is not installed: its check is left out (Debian: apt-get install e2fsprogs)"
    fi
done

say "Where everything is"
printf '  %-28s %s\n' "$out/journal" "the primary journal" \
    "$out/1.0.img, $out/1.1.img" "primary storage as the target left it" \
    "$out/1.0.base, $out/1.1.base" "the volumes from before the first write" \
    "$out/<moment>.img" "volume 1.0 as it was then" "$out/log.json" "every entry, one JSON object a line"
say "Try: $agent restore $out/journal --volume 1.1 --base $out/1.1.base --at order:200 --to $out/then.img"
