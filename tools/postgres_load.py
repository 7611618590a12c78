"""Clients of the database of `make postgres`, outside of its guest, that remember when each transaction began and when it was
acknowledged. So it is known between which counts of rows a moment must lie."""
import glob, subprocess, threading, time

TELLERS = 3
PGBENCH_CLIENTS = 3
# pgbench adds a monotonic clock to the time at which it began; the two may drift.
PGBENCH_NS = 1_000_000
SETUP = ["create extension amcheck", "create table told(client int, number int, primary key (client, number))"]


class Span:
    """Of one client: when its transactions began, and when they were acknowledged (ns since 1970), in order."""

    def __init__(self):
        self.begun, self.acknowledged = [], []

    def acknowledged_by(self, at):
        return sum(t <= at for t in self.acknowledged)

    def begun_by(self, at):
        return sum(t <= at for t in self.begun)

    def now(self):
        """Acknowledged, begun."""
        return len(self.acknowledged), len(self.begun)


class Load:
    def __init__(self, programs, port, out):
        self.programs, self.out = programs, out
        self.address = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        self.tellers = [Span() for _ in range(TELLERS)]
        self.pgbench = Span()
        self.held, self.ended, self.failed = False, False, []
        self.changed = threading.Condition()

    def prepare(self):
        psql = [self.programs + "/psql", *self.address, "-XAtq", "postgres"]
        for statement in SETUP:
            subprocess.run([*psql, "-c", statement], check=True)
        subprocess.run([self.programs + "/pgbench", *self.address, "-i", "-s", "1", "-q", "postgres"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run([*psql, "-c", "checkpoint"], check=True)

    def start(self, seconds):
        self.threads = [threading.Thread(target=self.tell, args=(client,), daemon=True) for client in range(TELLERS)]
        for thread in self.threads:
            thread.start()
        # No vacuum before: it would empty the history.
        self.bench = subprocess.Popen(
            [self.programs + "/pgbench", *self.address, "-n", "-c", str(PGBENCH_CLIENTS), "-T", str(seconds), "-l",
             "--log-prefix", self.out + "/pgbench_log", "postgres"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def tell(self, client):
        """One row a transaction, numbered."""
        psql = subprocess.Popen([self.programs + "/psql", *self.address, "-XAt", "postgres"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
        span = self.tellers[client]
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.ended or not self.held)
                if self.ended:
                    break
                number = len(span.begun) + 1
                span.begun.append(time.time_ns())
            psql.stdin.write("insert into told values (%d, %d);\n" % (client, number))
            psql.stdin.flush()
            said = psql.stdout.readline()
            if said != "INSERT 0 1\n":
                self.failed.append("client %d, row %d: %s" % (client, number, said + psql.stdout.readline()))
                break
            span.acknowledged.append(time.time_ns())
        psql.stdin.close()
        psql.wait()

    def hold(self):
        """Until each teller has its answer; none begins another transaction."""
        with self.changed:
            self.held = True
        until = time.monotonic() + 60
        while any(len(span.begun) > len(span.acknowledged) for span in self.tellers) and time.monotonic() < until:
            time.sleep(0.005)

    def release(self):
        with self.changed:
            self.held = False
            self.changed.notify_all()

    def end(self):
        """All of it; pgbench has said which transactions it had."""
        said, _ = self.bench.communicate()
        if self.bench.returncode:
            self.failed.append(said)
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()
        for path in glob.glob(self.out + "/pgbench_log*"):
            for line in open(path):
                _, _, took, _, seconds, microseconds = line.split()[:6]
                acknowledged = int(seconds) * 10**9 + int(microseconds) * 1000
                self.pgbench.acknowledged.append(acknowledged + PGBENCH_NS)
                self.pgbench.begun.append(acknowledged - int(took) * 1000 - PGBENCH_NS)
        return said
