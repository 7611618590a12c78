#!/bin/sh
# Beside the system, for co-simulation: QEMU that has `vfio-user-pci` (10.1 and later), a stock Debian kernel,
# and busybox for the guest. By name, from the mirror that this machine is configured for; nothing on the system
# is replaced. Prints the folder. About 60 MB are fetched.
set -eu
cd "$(dirname "$0")/.."
root=$PWD/.tools/cosim
if [ -e "$root/.complete" ]; then
    echo "$root"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$root"
mkdir -p "$root" "$work/lists/partial" "$work/cache/archives/partial"
: > "$work/status"
mirror=$(apt-get indextargets --format '$(SITE)' 2> /dev/null | grep -m 1 -v security || true)
mirror=${mirror:-http://deb.debian.org/debian}
# apt with an empty package status resolves all that a program needs, its libraries included.
configure() {
    cat > "$work/apt.conf" << END
Dir::State "$work";
Dir::State::status "$work/status";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
    : > "$work/sources.list"
    for suite in "$@"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >> "$work/sources.list"
    done
    APT_CONFIG=$work/apt.conf
    export APT_CONFIG
    apt-get update -qq >&2
}
unpack() {
    for deb in "$work"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$1"; done
    rm -f "$work"/cache/archives/*.deb
}
configure trixie trixie-backports
apt-get -y -qq --download-only -t trixie-backports install qemu-system-x86 >&2
unpack "$root/qemu"
configure bookworm
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
(cd "$work/cache/archives" && apt-get -q download "$kernel" busybox-static >&2)
unpack "$root/guest"
touch "$root/.complete"
echo "$root"
