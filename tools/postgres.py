#!/usr/bin/env python3
"""`make postgres`: PostgreSQL with pgbench on ext4 in a virtual machine, on a disk that `host-agent serve` has; its clients are
outside and know what was acknowledged when. Then the images of random moments (bookmarks, order:N, times) are disks of other
guests, by `host-agent image serve --writable`: the kernel mounts each, the database recovers by its own log, and it must have
every row that was acknowledged before the moment and none that was begun after it, and pgbench's sums must agree; amcheck and
the pages' checksums must find nothing at every fifth.

    postgres.py TOOLS AGENT     CHRONO_SEED replays the choice of moments; PG_MOMENTS, PG_SECONDS, PG_KILLS

First after-images over a base: the server is killed under the load, and the guest's power goes at the end. Then both images,
and a few moments over the primary that is being written.
"""
import itertools, json, os, random, shutil, signal, socket, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine, postgres_guest
from postgres_load import Load

MOMENTS = int(os.environ.get("PG_MOMENTS", "100"))
SECONDS = int(os.environ.get("PG_SECONDS", "60"))
LIVE_MOMENTS = 5
# A guest has so many images as disks.
DISKS = 20
# One moment in so many is looked at by amcheck and pg_checksums.
EVERY = 5
# Of a guest, and of everything.
LIMIT_SECONDS = 1800
TOTAL_SECONDS = 7200
# The server is killed so often under the load.
KILLS = int(os.environ.get("PG_KILLS", "2"))
# The journal's end may be older than the kill: what came since is the gap.
GRACE_NS = 1_000_000_000


class Moment:
    def __init__(self, when, since=None, least=None, most=None):
        """Taken between `since`, with rows acknowledged by then, and now, with rows begun by now."""
        self.when, self.since, self.least, self.most, self.stamp, self.found = when, since, least, most, None, None

    def judge(self, load):
        """What is wrong with it; how many rows, and of pgbench's transactions, the clients leave open."""
        wrong, open_rows = [], 0
        *told, history, deltas, accounts, tellers, branches = self.found[3:]
        rows = {int(client): (int(count), int(top)) for client, count, top in (t.split(":") for t in told if t != "-")}
        # What was acknowledged before its last write was stamped, or, of a bookmark, before it was asked for.
        since = max(self.since or 0, self.stamp)
        for client, span in enumerate(load.tellers):
            count, top = rows.get(client, (0, 0))
            least, most = span.acknowledged_by(since), span.begun_by(self.stamp)
            if self.least:
                least, most = max(least, self.least[client]), min(most, self.most[client])
            open_rows += most - least
            if count != top or not least <= count <= most:
                wrong.append("client %d: %d rows up to %d, must be %d to %d" % (client, count, top, least, most))
        least, most = load.pgbench.acknowledged_by(since), load.pgbench.begun_by(self.stamp)
        if not least <= int(history) <= most:
            wrong.append("pgbench: %s transactions, must be %d to %d" % (history, least, most))
        if not deltas == accounts == tellers == branches:
            wrong.append("pgbench's sums: %s %s %s %s" % (deltas, accounts, tellers, branches))
        return wrong, open_rows, most - least


class Refused(Exception):
    """A moment inside a gap: of writes from before a server was killed, the journal has only what they left."""


class Run:
    def __init__(self, agent, out, guests, images, disk, say):
        self.agent, self.out, self.guests, self.images, self.say = agent, out, guests, images, say
        self.children, self.bookmarks, self.moments, self.kills, self.refused = [], [], [], [], 0
        self.journal, self.primary, self.base = out + "/j", out + "/primary", disk
        subprocess.run(["cp", "--sparse=always", disk, self.primary], check=True)

    def ask(self, *arguments):
        return subprocess.check_output([self.agent, *arguments], text=True)

    def order(self):
        return json.loads(self.ask("status", self.journal, "--json"))["order"]

    def serve(self, *arguments):
        child = subprocess.Popen([self.agent, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.children.append(child)
        said = []
        for line in child.stdout:
            said.append(line)
            if line.startswith("serving "):
                return child
        if any(" gap" in line for line in said):
            raise Refused
        sys.exit("host-agent %s: %s" % (" ".join(arguments), "".join(said)))

    def end(self, child, kill=False):
        if kill:
            child.kill()
        else:
            child.terminate()
        said = child.stdout.read()
        if child.wait() and not kill:
            sys.exit("a server ended with %d: %s" % (child.returncode, said))
        self.children.remove(child)

    def protect(self, *more):
        self.server = self.serve("serve", "--journal", self.journal, "--images", self.images, "--export",
                                 "disk=" + self.primary, "--socket", self.out + "/disk.sock", *more)

    def kill(self):
        """The server, under the guest, which goes on when there is another."""
        began = time.time_ns()
        self.end(self.server, kill=True)
        self.protect()
        self.kills.append((began, time.time_ns()))
        self.say("the server killed; another %.1f s later" % ((time.time_ns() - began) / 1e9))

    def begin(self):
        """The database in its guest."""
        self.protect("--create", "--size", "2G")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.guest = self.guests.boot("load", [("disk", self.out + "/disk.sock", "disk")], [
            "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-10.0.2.15:5432" % port,
            "-device", "virtio-net-pci,netdev=net,romfile="])
        self.children.append(self.guest)
        if not any(what == "READY" for what, _ in machine.told(self.guest, "database", LIMIT_SECONDS)):
            sys.exit("the guest of the database ended")
        self.say("the database runs")
        load = Load(postgres_guest.programs(), port, self.out)
        load.prepare()
        self.first = self.order() + 1
        self.say("%s-images: prepared in %d writes" % (self.images, self.first - 1))
        return load

    def bookmark(self, load, hold):
        """One now; with `hold` while no row is on its way."""
        name = "moment-%d" % len(self.bookmarks)
        if hold:
            load.hold()
        since, least = time.time_ns(), [span.now()[0] for span in load.tellers]
        self.ask("bookmark", "add", self.journal, name)
        most = [span.now()[1] for span in load.tellers]
        if hold:
            load.release()
        self.bookmarks.append(Moment("bookmark:" + name, since, least, most))

    def stamps(self):
        """When the bookmarks are."""
        for line in self.ask("bookmark", "list", self.journal, "--json").splitlines():
            bookmark = json.loads(line)
            for moment in self.bookmarks:
                if moment.when == "bookmark:" + bookmark["name"]:
                    moment.stamp = bookmark["timestamp"]

    def look(self, moments, count, source):
        """The next so many, refused ones apart, each as a disk of one guest."""
        disks, servers = [], []
        while len(disks) < count:
            moment = next(moments)
            path = "%s/image%d.sock" % (self.out, len(disks))
            try:
                servers.append(self.serve("image", "serve", self.journal, "--volume", "disk", *source, "--at", moment.when,
                                          "--writable", "--scratch", self.out, "--socket", path))
            except Refused:
                if not any(start - GRACE_NS <= moment.stamp <= end for start, end in self.kills):
                    sys.exit("%s is refused, and no server was killed then" % moment.when)
                self.refused += 1
                continue
            disks.append(("image%d" % len(self.moments), path, ""))
            self.moments.append(moment)
        guest = self.guests.boot("check", disks, words="every=%d" % EVERY)
        self.children.append(guest)
        done = False
        for what, rest in machine.told(guest, "images", LIMIT_SECONDS):
            done |= what == "DONE"
            if what == "FOUND":
                name, *found = rest.split()
                self.moments[int(name[5:])].found = found
        self.children.remove(guest)
        if not done or not all(moment.found for moment in self.moments):
            sys.exit("the guest of the images ended before it was done")
        for server in servers:
            self.end(server)

    def report(self, load):
        """Failures."""
        failures, rows, transactions = 0, [], []
        for moment in self.moments:
            wrong, open_rows, open_transactions = moment.judge(load)
            rows.append(open_rows)
            transactions.append(open_transactions)
            failures += bool(wrong)
            for line in wrong:
                print("%s: %s" % (moment.when, line))
        self.say("%s-images: %d moments, %d failures; ext4 recovered its journal at %d, PostgreSQL redid its log at %d, "
                 "amcheck and checksums clean at %d" % (
                     self.images, len(self.moments), failures, sum(m.found[0] == "1" for m in self.moments),
                     sum(m.found[1] == "1" for m in self.moments), sum("amcheck" in m.found[2] for m in self.moments)))
        self.say("under way, so that they may be there or not: no row at %d moments, else %d at most; %d of pgbench's "
                 "transactions at most, %.1f on average" % (
                     rows.count(0), max(rows), max(transactions), sum(transactions) / len(transactions)))
        return failures

    def stop(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()


def load_ended(run, load):
    said = load.end()
    if load.failed:
        sys.exit("the load failed: %s" % load.failed)
    rate = [line for line in said.splitlines() if line.startswith("tps")]
    run.say("load ended: %s rows and %d transactions of pgbench, %s" % (
        "+".join(str(len(span.acknowledged)) for span in load.tellers), len(load.pgbench.acknowledged), rate[0]))


def any_moment(random, stamps):
    """Just after a write, or a time."""
    if random.randrange(3):
        order = random.choice(list(stamps))
        moment = Moment("order:%d" % order)
        moment.stamp = stamps[order]
    else:
        moment = Moment(str(random.randrange(min(stamps.values()), max(stamps.values()))))
        moment.stamp = int(moment.when)
    return moment


def over_a_base(run, random):
    """Bookmarks while it runs, more moments afterwards; the server is killed, and at the end the guest's power goes."""
    load = run.begin()
    load.start(SECONDS)
    bookmarks = max(1, MOMENTS * 2 // 5)
    until = time.monotonic() + SECONDS
    for place in range(bookmarks):
        left = (until - time.monotonic()) / (bookmarks - place)
        time.sleep(max(0, random.uniform(0, 2 * left) if place + 1 < bookmarks else left / 2))
        if (place + 1) * (KILLS + 1) // bookmarks > place * (KILLS + 1) // bookmarks and place + 1 < bookmarks:
            run.kill()
        run.bookmark(load, hold=place % 2 == 0)
    load_ended(run, load)
    run.end(run.guest, kill=True)
    run.end(run.server)
    print(run.ask("verify", run.journal))
    entries = [json.loads(line) for line in
               run.ask("log", run.journal, "--from", "order:%d" % run.first, "--json").splitlines()]
    resynced = sum(entry["kind"] == "resync" for entry in entries)
    run.say("journal: %d writes under load, %d entries more to make good what the kills left" % (len(entries) - resynced, resynced))
    last = entries[-1]
    stamps = {entry["order"]: entry["timestamp"] for entry in entries if entry["kind"] != "resync"}
    run.stamps()
    # As it was when the guest's power went; the bookmarks; and just after any write, and at any time.
    chosen = [Moment("order:%d" % last["order"], time.time_ns(), *zip(*[span.now() for span in load.tellers]))] + run.bookmarks
    chosen[0].stamp = last["timestamp"]
    chosen += [any_moment(random, stamps) for _ in range(MOMENTS - len(chosen))]
    random.shuffle(chosen)
    moments = itertools.chain(chosen, (any_moment(random, stamps) for _ in itertools.count()))
    while len(run.moments) < MOMENTS:
        run.look(moments, min(DISKS, MOMENTS - len(run.moments)), ["--base", run.base])
        run.say("%d of %d moments looked at; %d refused, in gaps" % (len(run.moments), MOMENTS, run.refused))
    failures = run.report(load)
    run.ask("restore", run.journal, "--volume", "disk", "--base", run.base, "--at", "end", "--to", run.out + "/end")
    if machine.digest(run.out + "/end") != machine.digest(run.primary):
        sys.exit("the newest image isn't primary")
    return failures


def over_primary(run, random):
    load = run.begin()
    load.start(SECONDS)
    for place in range(LIVE_MOMENTS):
        time.sleep(random.uniform(1, 4))
        run.bookmark(load, hold=place % 2 == 0)
    run.stamps()
    before = run.order()
    run.look(iter(run.bookmarks), LIVE_MOMENTS, ["--primary", run.primary])
    run.say("looked at over the live primary: %d more writes meanwhile" % (run.order() - before))
    load_ended(run, load)
    run.end(run.guest, kill=True)
    run.end(run.server)
    print(run.ask("verify", run.journal))
    return run.report(load)


def main():
    tools, agent = sys.argv[1:3]
    began = time.monotonic()

    def say(what):
        print("%6.1f s  %s" % (time.monotonic() - began, what), flush=True)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("it took longer than %d s" % TOTAL_SECONDS))
    signal.alarm(TOTAL_SECONDS)
    # Guests and servers end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    seed = int(os.environ.get("CHRONO_SEED", random.randrange(1 << 32)))
    print("CHRONO_SEED=%d" % seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="postgres") as out:
        guests = postgres_guest.Guests(tools, out)
        disk = postgres_guest.database_disk(out)
        say("disks made")
        for images, what in [("after", over_a_base), ("both", over_primary)]:
            folder = out + "/" + images
            os.mkdir(folder)
            run = Run(agent, folder, guests, images, disk, say)
            try:
                failures += what(run, random.Random(seed))
            finally:
                run.stop()
            shutil.rmtree(folder)
    if failures:
        sys.exit("postgres: %d moments failed" % failures)
    say("postgres: passed")


main()
