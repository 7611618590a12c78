"""A virtual machine as the tests use it: a stock Debian kernel, an initramfs made of the host's files, QEMU without KVM
(docs/decisions/0083-cosim.md)."""
import hashlib, os, re, shutil, subprocess, sys, threading

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def initramfs(tools, out, init, programs, modules):
    """busybox, the modules in the order in which they need each other, programs with their libraries, /init."""
    root = out + "/initramfs"
    for folder in ["bin", "sbin", "dev", "proc", "sys", "tmp", "mnt", "modules"]:
        os.makedirs(root + "/" + folder)
    busybox = tools + "/guest/bin/busybox"
    shutil.copy(busybox, root + "/bin/busybox")
    shutil.copy(init, root + "/init")
    os.chmod(root + "/init", 0o755)
    for name, program in programs.items():
        # In sbin, where busybox doesn't put programs of the same name.
        subprocess.run(["strip", "-o", root + "/sbin/" + name, os.path.realpath(program)], check=True)
        for library in re.findall(r"(/\S+)", subprocess.check_output(["ldd", program], text=True)):
            os.makedirs(root + os.path.dirname(library), exist_ok=True)
            shutil.copy(os.path.realpath(library), root + library)
    release = os.listdir(tools + "/guest/lib/modules")[0]
    base = tools + "/guest/lib/modules/" + release
    if not os.path.exists(base + "/modules.dep"):
        subprocess.run([busybox, "depmod", "-b", tools + "/guest", release], check=True)
    needs, named = {}, {}
    for line in open(base + "/modules.dep"):
        module, _, rest = line.partition(":")
        needs[module] = rest.split()
        named[os.path.basename(module).split(".")[0].replace("-", "_")] = module
    order = []

    def add(module):
        for needed in reversed(needs[module]):
            if needed not in order:
                add(needed)
        if module not in order:
            order.append(module)
    for module in modules:
        add(named[module.replace("-", "_")])
    with open(root + "/modules/order", "w") as names:
        for module in order:
            shutil.copy(base + "/" + module, root + "/modules")
            names.write(os.path.basename(module) + "\n")
    archive = out + "/initramfs.cpio"
    with open(archive, "wb") as file:
        files = subprocess.run(["find", ".", "-mindepth", "1"], cwd=root, check=True, stdout=subprocess.PIPE)
        subprocess.run([busybox, "cpio", "-o", "-H", "newc"], cwd=root, input=files.stdout, stdout=file,
                       stderr=subprocess.DEVNULL, check=True)
    return archive, tools + "/guest/boot/vmlinuz-" + release


def disk(out, content, size="96M"):
    """A disk with these files on it."""
    folder, path = out + "/disk", out + "/disk.img"
    os.makedirs(folder)
    for name, text in content.items():
        with open(folder + "/" + name, "w") as file:
            file.write(text)
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", folder, path, size], check=True, stdout=subprocess.DEVNULL)
    return path


def qemu(tools, kernel, initrd, devices, more, memory="640M"):
    root = tools + "/qemu/usr"
    libraries = root + "/lib/x86_64-linux-gnu"
    # TCG: a guest hangs on the /dev/kvm of some machines where the kernel that one sees isn't the one that runs.
    # A busy machine doesn't give the emulated timer its ticks in time for the kernel's check of it.
    command = [libraries + "/ld-linux-x86-64.so.2", "--library-path", libraries, root + "/bin/qemu-system-x86_64",
               "-L", root + "/share/qemu", "-L", root + "/share/seabios",
               "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-monitor", "none",
               "-machine", "q35,accel=tcg,kernel-irqchip=off,memory-backend=ram0", "-cpu", "max", "-smp", "1", "-m", memory,
               "-object", "memory-backend-memfd,id=ram0,size=%s,share=on" % memory, *devices,
               "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 no_timer_check " + more]
    environment = dict(os.environ, QEMU_MODULE_DIR=libraries + "/qemu")
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def told(guest, name, seconds):
    """What the guest tells by lines with @@, word and rest, until it ends; its other lines are printed."""
    late = []

    def end():
        late.append(True)
        guest.kill()
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        for raw in guest.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            if "@@" not in line:
                print("%12s  %s" % (name, line), flush=True)
                continue
            what, _, rest = line.split("@@", 1)[1].partition(" ")
            if what == "FAIL":
                print("%12s  FAIL %s" % (name, rest))
                print(guest.stdout.read().decode("utf-8", "replace"))
                sys.exit("the %s failed: %s" % (name, rest))
            yield what, rest
        guest.wait()
        if late:
            sys.exit("the %s took longer than %d s" % (name, seconds))
    finally:
        timer.cancel()


def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()
