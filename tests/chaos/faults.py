"""How each kind of fault begins and ends."""

import random
import signal
import time

import psycopg

from world import DATABASE, ROLE

# Tables whose rows a worker inserts.
INSERTED = ("verdicts", "outbox", "suspects")
# What a rule of the operator's and a damaged page end with: raise_exception, index_corrupted.
POISON_CODES = ("P0001", "XX002")
# Of one worker: the connections of its pool (MAX_CONNECTIONS in src/ledger/postgres.rs), and as many that it has given up
# and the server has not ended yet.
MAX_SESSIONS = 16

# A crash happens when a worker reaches the crash point for the n-th time, with n up to this.
CRASH_WITHIN = 40

END_SESSIONS = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid()"
READ_ONLY = f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on"
TIMEOUT = f"ALTER ROLE {ROLE} IN DATABASE {DATABASE} SET statement_timeout = '800ms'"
NO_TIMEOUT = f"ALTER ROLE {ROLE} IN DATABASE {DATABASE} RESET statement_timeout"
READ_WRITE = f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only"


class Faults:
    def __init__(self, world, fleet, proxies, events, seed):
        self.world, self.fleet, self.events = world, fleet, events
        self.proxies = dict(zip(("broker", "ledger", "store", "far store"), proxies))
        self.too_many_sessions = []
        self.chance = random.Random(f"faults-{seed}")

    def inject(self, kind, lasts):
        """One fault, from its beginning to its end."""
        service, _, what = kind.partition("-")
        if inject := getattr(self, kind.replace("-", "_"), None):
            inject(lasts)
        elif what.startswith("crash-"):
            self.crash(what.removeprefix("crash-"))
        elif what == "restart":
            name = {"broker": "rabbitmq", "ledger": "postgres", "store": "s3"}[service]
            self.world.control(name, "stop")
            time.sleep(lasts)
            self.world.control(name, "start")
        else:
            self.disturb(self.proxies[service], what, lasts)

    def disturb(self, proxy, mode, lasts):
        """Changes the mode of a proxy for a while. A TCP reset takes no time."""
        if mode == "reset" and hasattr(proxy, "reset"):
            proxy.reset()
            return
        proxy.mode = mode.removeprefix("commit-")
        time.sleep(lasts)
        proxy.mode = "pass"

    def worker_kill(self, _):
        self.fleet.kill(self.chance.choice(self.fleet.workers))

    def worker_stop(self, lasts):
        process = self.chance.choice(self.fleet.workers).process
        process.send_signal(signal.SIGSTOP)
        time.sleep(lasts)
        process.send_signal(signal.SIGCONT)

    def worker_restart(self, _):
        """An orderly end and a new process: of one worker, or of all at once."""
        workers = self.fleet.workers
        self.fleet.restart(workers if self.chance.random() < 0.5 else [self.chance.choice(workers)])

    def crash(self, step):
        self.fleet.crash(self.chance.choice(self.fleet.workers), step, self.chance.randint(1, CRASH_WITHIN))

    def broker_close_connections(self, _):
        self.world.control("rabbitmq", "close-connections")

    def broker_memory_alarm(self, lasts):
        self.world.control("rabbitmq", "alarm")
        time.sleep(lasts)
        self.world.control("rabbitmq", "calm")

    def broker_event_queue_deleted(self, lasts):
        self.events.delete_queue()
        time.sleep(lasts)
        self.events.declare_queue()

    def ledger_backends_terminated(self, _):
        self._sql(END_SESSIONS)

    def ledger_read_only(self, lasts):
        # Open sessions keep their setting.
        self._sql(READ_ONLY, END_SESSIONS)
        time.sleep(lasts)
        self._sql(READ_WRITE, END_SESSIONS)

    def ledger_insert_revoked(self, lasts):
        table = self.chance.choice(INSERTED)
        self._in_ledger(f"REVOKE INSERT ON {table} FROM {ROLE}")
        time.sleep(lasts)
        self._in_ledger(f"GRANT INSERT ON {table} TO {ROLE}")

    def ledger_poison_trigger(self, lasts):
        self._in_ledger(f"INSERT INTO planted VALUES ('poison', '{self.chance.choice(POISON_CODES)}')")
        time.sleep(lasts)
        self._in_ledger("DELETE FROM planted")

    def ledger_statement_timeout(self, lasts):
        """No write ends. Either the server cancels them, or only the worker's own deadline ends the wait."""
        if self.chance.random() < 0.5:
            # Open sessions keep their setting.
            self._sql(TIMEOUT, END_SESSIONS)
        self._in_ledger("INSERT INTO planted VALUES ('stall')")
        time.sleep(lasts)
        sessions, limit = self._sessions(), MAX_SESSIONS * len(self.fleet.workers)
        if sessions > limit:
            self.too_many_sessions.append(f"{sessions} after {lasts:g} s, more than {limit}")
        self._in_ledger("DELETE FROM planted")
        self._sql(NO_TIMEOUT, END_SESSIONS)

    def store_one_of_two_down(self, lasts):
        self.proxies["far store"].refuse()
        time.sleep(lasts)
        self.proxies["far store"].accept()

    def _sessions(self):
        with self.world.database() as database:
            query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
            return database.execute(query, [ROLE]).fetchone()[0]

    def _in_ledger(self, statement):
        with self.world.database() as database:
            database.execute(statement)

    def _sql(self, *statements):
        with psycopg.connect(self.world.admin_url, autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement)
