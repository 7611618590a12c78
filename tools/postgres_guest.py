"""The guests of `make postgres`: their disks, made of the host's PostgreSQL, and QEMU."""
import glob, os, re, shutil, subprocess, sys
import machine

MODULES = ["virtio_pci", "virtio_blk", "virtio_net"]
SIZE = 256 << 20
# Whoever owns the database; it refuses root.
OWNER = os.getuid() or 65534
# Checkpoints, and segments of its log used again, while it is looked at.
SETTINGS = """
listen_addresses = '*'
unix_socket_directories = '/tmp'
shared_buffers = 32MB
min_wal_size = 32MB
max_wal_size = 48MB
checkpoint_timeout = 30s
timezone = 'GMT'
log_timezone = 'GMT'
jit = off
"""


def programs():
    """The folder of the newest PostgreSQL."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    if not found:
        sys.exit("no PostgreSQL in /usr/lib/postgresql")
    return os.path.dirname(found[-1])


def root_disk(tools, out):
    """PostgreSQL with its libraries, busybox for a shell."""
    root, bin = out + "/root", programs()
    version = bin.split("/")[4]
    for folder in ["bin", "dev", "proc", "tmp", "data", "etc"]:
        os.makedirs(root + "/" + folder)
    names = ["postgres", "psql", "pg_amcheck", "pg_checksums"]
    os.makedirs(root + bin)
    for name in names:
        shutil.copy(bin + "/" + name, root + bin)
    for folder in [os.path.dirname(bin) + "/lib", "/usr/share/postgresql/" + version]:
        shutil.copytree(folder, root + folder, symlinks=True)
    os.symlink(bin, root + "/programs")
    needed = set()
    for program in [bin + "/" + name for name in names] + glob.glob(os.path.dirname(bin) + "/lib/*.so"):
        needed.update(re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True).stdout))
    for library in needed:
        if library.startswith(out):
            continue
        os.makedirs(root + os.path.dirname(library), exist_ok=True)
        shutil.copy(os.path.realpath(library), root + library)
    shutil.copy(tools + "/guest/bin/busybox", root + "/bin/busybox")
    # The database's programs run shells.
    os.symlink("busybox", root + "/bin/sh")
    with open(root + "/etc/passwd", "w") as file:
        file.write("root::0:0::/:/bin/sh\nowner::%d:%d::/tmp:/bin/sh\n" % (OWNER, OWNER))
    path = out + "/root.img"
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", root, path, "320M"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(root)
    return path


def database_disk(out):
    """An ext4 with a new database, as it was before the first write through the host-agent."""
    folder, path = out + "/data", out + "/disk.img"
    os.makedirs(folder)
    who = {}
    if os.getuid() == 0:
        # initdb too refuses root.
        os.chmod(out, 0o711)
        os.chown(folder, OWNER, OWNER)
        who = {"user": OWNER, "group": OWNER, "extra_groups": []}
    subprocess.run([programs() + "/initdb", "-D", folder + "/pgdata", "-U", "postgres", "-A", "trust", "--no-locale",
                    "--encoding=UTF8", "--data-checksums", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd="/", **who)
    with open(folder + "/pgdata/postgresql.conf", "a") as file:
        file.write(SETTINGS)
    with open(folder + "/pgdata/pg_hba.conf", "a") as file:
        file.write("host all all 0.0.0.0/0 trust\n")
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0", "-d", folder, path, str(SIZE >> 10) + "k"],
                   check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)
    return path


class Guests:
    """What they all boot from."""

    def __init__(self, tools, out):
        self.tools = tools
        self.initrd, self.kernel = machine.initramfs(tools, out, machine.HERE + "/tools/postgres-init.sh",
                                                     {"e2fsck": "/sbin/e2fsck"}, MODULES)
        self.root = root_disk(tools, out)

    def boot(self, mode, disks, more=(), words="every=1"):
        """`disks`: name, socket and export. A server that goes away has a minute to come back."""
        devices = ["-drive", "file=%s,if=none,id=root,format=raw,readonly=on" % self.root,
                   "-device", "virtio-blk-pci,drive=root,serial=root"]
        for name, path, export in disks:
            devices += ["-drive", "file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=%s,"
                        "file.reconnect-delay=60,if=none,id=%s,format=raw,cache=none,discard=unmap" % (path, export, name),
                        "-device", "virtio-blk-pci,drive=%s,serial=%s" % (name, name)]
        return machine.qemu(self.tools, self.kernel, self.initrd, [*devices, *more], "mode=%s %s" % (mode, words))
