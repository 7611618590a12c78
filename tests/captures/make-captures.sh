#!/usr/bin/env bash
# Re-creates the captures of this folder from scratch: the Linux kernel's `aoe` initiator in a
# QEMU guest (software emulation, no KVM) against Debian's vblade, two ports, two volumes.
#
#   make-captures.sh [small] [large]      both when none is named
#
# Needs root (network namespace, TAP, raw sockets), a Debian 12 with its package mirror
# configured, about 1.5 GB of scratch space. CAPTURES_WORK names the scratch folder (kept);
# without it a temporary one is used and removed. Nothing outside the scratch folder and
# small/, large/ is changed, except that missing packages among $HOST_PACKAGES are installed.
# All traffic stays inside a network namespace that ends with the run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
sets=("$@"); [ ${#sets[@]} -gt 0 ] || sets=(small large)

HOST_PACKAGES="vblade tcpdump e2fsprogs coreutils busybox-static iproute2 util-linux cpio python3"

if [ -n "${CAPTURES_WORK:-}" ]; then
    work=$CAPTURES_WORK; mkdir -p "$work"
else
    work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
fi

# --- what the system lacks, by package name; nothing may be removed for it ---------------------
missing=""
for p in $HOST_PACKAGES; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-remove --no-install-recommends $missing
fi

# --- QEMU and the guest's kernel, beside the system --------------------------------------------
# Installing Debian's qemu-system-x86 can remove newer qemu-utils, so it is only unpacked: apt
# with its own, empty package status resolves all it needs from the mirrors already configured.
root=$work/root
if [ ! -e "$root/.complete" ]; then
    apt=$work/apt
    rm -rf "$apt" "$root"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$root"
    : > "$apt/status"
    cat > "$apt/apt.conf" <<EOF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
EOF
    export APT_CONFIG=$apt/apt.conf
    apt-get update -qq
    kernel_package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    apt-get -y -qq --download-only install qemu-system-x86
    (cd "$apt/cache/archives" && apt-get -q download "$kernel_package")
    unset APT_CONFIG
    for deb in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$root"; done
    dpkg-deb -f "$apt/cache/archives/$kernel_package"_*.deb Version > "$root/kernel-version"
    rm -rf "$apt"
    touch "$root/.complete"
fi
release=$(basename "$(echo "$root"/lib/modules/*)")

# --- initramfs: busybox, mkfs.ext4, coreutils' dd (its O_DIRECT is aligned), the modules needed, guest-init.sh --------------------------
rd=$work/initramfs
rm -rf "$rd"
mkdir -p "$rd"/{bin,sbin,lib64,dev,proc,sys,tmp,mnt/0,mnt/1,modules,etc}
cp /usr/bin/busybox "$rd/bin/busybox"
cp "$here/guest-init.sh" "$rd/init"; chmod 755 "$rd/init"
for tool in mkfs.ext4 dd; do
    path=$(readlink -f "$(command -v $tool || echo /usr/sbin/$tool)")
    cp "$path" "$rd/sbin/$tool"
    ldd "$path" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^\s*\(\/[^ ]*ld-linux[^ ]*\).*/\1/p' | while read -r lib; do
        mkdir -p "$rd$(dirname "$lib")"; cp -L "$lib" "$rd$lib"
    done
done
# No mke2fs.conf: its built-in defaults, plus what guest-init.sh says, decide the file system.
busybox depmod -b "$root" "$release"
python3 - "$root/lib/modules/$release" "$rd/modules" virtio_pci virtio_net crc32c_generic ext4 aoe <<'EOF'
import os, shutil, sys
base, out, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
deps, by_name = {}, {}
for line in open(os.path.join(base, "modules.dep")):
    mod, _, rest = line.partition(":")
    deps[mod] = rest.split()
    by_name[os.path.basename(mod).split(".")[0].replace("-", "_")] = mod
order = []
def add(mod):
    for d in deps[mod]:
        if d not in order:
            add(d)
    if mod not in order:
        order.append(mod)
for w in wanted:
    add(by_name[w])
with open(os.path.join(out, "order"), "w") as f:
    for m in order:
        shutil.copy(os.path.join(base, m), out)
        f.write(os.path.basename(m) + "\n")
EOF
(cd "$rd" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet | gzip -1n) > "$work/initramfs.gz"

# --- the runs ----------------------------------------------------------------------------------
for set in "${sets[@]}"; do
    out=$work/run-$set
    rm -rf "$out"; mkdir -p "$out"
    unshare --net python3 "$here/run-captures.py" --set "$set" --out "$out" --root "$root" \
        --kernel "$root/boot/vmlinuz-$release" --kernel-version "$(cat "$root/kernel-version")" \
        --initrd "$work/initramfs.gz"
    python3 "$here/check-captures.py" --fill "$out"
    python3 "$here/check-captures.py" "$out"
    mkdir -p "$here/$set"
    cp "$out"/port0.pcap.gz "$out"/port1.pcap.gz "$out"/moments.json "$here/$set/"
done
echo "folder: $(du -sb --apparent-size "$here" | cut -f1) bytes"
