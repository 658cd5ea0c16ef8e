"""Private instances of the services that Pixwarden works with, for its tests.

Each instance has a folder, listens on the loopback interface only, and shares nothing with the services that the
machine runs already: it has separate ports, data and passwords, and RabbitMQ has a separate Erlang cookie and port
mapper.

Tests run side by side on one set of services. A second set, whose names begin with "stoppable-", is for the tests that
stop, restart or freeze a service. It is started by the first test that needs it.
"""

import base64
import hashlib
import json
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

import certificates
from service import (
    LOOPBACK,
    STATE_VARIABLE,
    Ports,
    Service,
    ServiceError,
    answers_http,
    as_user,
    exchange,
    executable,
    kill_marked,
    say,
    state_file,
    unprivileged_user,
)

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
DEPLOY = ROOT / "deploy"

# A test gives its prefix on the broker, its database and its bucket one name, which this matches.
TEST_NAME = "it-[0-9a-f]{32}"

# The services of the second set.
STOPPABLE = "stoppable-"


def restricted_password():
    """A password with characters that have a meaning in URLs."""
    return f"p@ss/{secrets.token_hex(8)}:?#%&+"


def quoted(password):
    return urllib.parse.quote(password, safe="")


class PortMapper(Service):
    """epmd, which RabbitMQ and its command line tools use to find each other. The machine's own epmd is not used."""

    name = "epmd"

    def command(self):
        return [executable("epmd"), "-address", LOOPBACK, "-port", self.port]


class RabbitMq(Service):
    name = "rabbitmq"
    # Debian's programs in /usr/sbin change to the user and the folders of the system's broker.
    PROGRAMS = Path("/usr/lib/rabbitmq/bin")
    USER = "pixwarden"

    def __init__(self, run, mapper, prefix=""):
        super().__init__(run, prefix)
        tls_port, management_port, distribution_port = (run.ports.take() for _ in range(3))
        self.tls_port = tls_port
        self.management_port = management_port
        self.distribution_port = distribution_port
        self.mapper = mapper
        self.password = secrets.token_hex(12)
        self.restricted_password = restricted_password()

    def prepare(self):
        definitions = self.folder / "definitions.json"
        definitions.write_text(json.dumps(self.definitions()))
        tls = self.run.certificates
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {LOOPBACK}:{self.port}\n"
            f"listeners.ssl.1 = {LOOPBACK}:{self.tls_port}\n"
            f"ssl_options.cacertfile = {tls.ca}\n"
            f"ssl_options.certfile = {tls.server}\n"
            f"ssl_options.keyfile = {tls.server_key}\n"
            f"load_definitions = {definitions}\n"
            f"management.tcp.ip = {LOOPBACK}\n"
            f"management.tcp.port = {self.management_port}\n"
            # The counts of queues need no statistics, which would cost processor time.
            "management_agent.disable_metrics_collector = true\n"
            + (DEPLOY / "rabbitmq" / "rabbitmq.conf").read_text()
        )
        # The counts of a quorum queue are as old as its last tick. The default is five seconds.
        (self.folder / "advanced.config").write_text("[{rabbit, [{quorum_tick_interval, 250}]}].\n")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "environment.conf").touch()

    def launch(self):
        # Otherwise Erlang starts a port mapper, which would outlive the broker.
        self.mapper.start()
        super().launch()

    def command(self):
        return [executable("rabbitmq-server", self.PROGRAMS)]

    def variables(self):
        return {
            "ERL_EPMD_PORT": str(self.mapper.port),
            "RABBITMQ_NODENAME": f"{self.prefix}pixwarden@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # With 0 the system chooses the port, so that several command line tools can run at the same time.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "environment.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_LOGS": "-",
            # With this variable the script becomes the broker instead of waiting for it, so that signals reach it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def is_ready(self):
        # A broker listens once it has booted, and answers the protocol header with connection.start, a method frame of
        # class 10, method 10 (AMQP 0-9-1, sections 1.4.2.1 and 2.3.5).
        answer = exchange(self.port, b"AMQP\x00\x00\x09\x01", 11)
        return answer[:1] == b"\x01" and answer[7:] == b"\x00\x0a\x00\x0a"

    def exports(self):
        authorization = base64.b64encode(f"{self.USER}:{self.password}".encode()).decode()
        return {
            "AMQP_URL": f"amqp://{self.USER}:{self.password}@{LOOPBACK}:{self.port}/%2f",
            "AMQP_TLS_PORT": str(self.tls_port),
            "AMQP_PASSWORD": self.restricted_password,
            "AMQP_MANAGEMENT_URL": f"http://{LOOPBACK}:{self.management_port}",
            "AMQP_MANAGEMENT_AUTHORIZATION": f"Basic {authorization}",
        }

    def definitions(self):
        """The tests' own user, who may do everything, and the users of deploy/ for the tests' prefixes."""
        permissions = json.loads((DEPLOY / "rabbitmq" / "permissions.json").read_text())["permissions"]
        for permission in permissions:
            for what in ("configure", "write", "read"):
                permission[what] = permission[what].replace("pixwarden\\.", f"{TEST_NAME}\\.")
        users = [rabbitmq_user(permission["user"], self.restricted_password, []) for permission in permissions]
        everything = {"user": self.USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
        return {
            "vhosts": [{"name": "/"}],
            "users": [rabbitmq_user(self.USER, self.password, ["administrator"]), *users],
            "permissions": [everything, *permissions],
        }

    def set_permissions(self, user, configure, write, read):
        self._control("set_permissions", "-p", "/", user, configure, write, read)

    def stop_app(self):
        self._control("stop_app")

    def start_app(self):
        self._control("start_app")
        self.await_ready()

    def close_connections(self):
        self._control("close_all_connections", "closed by a test")

    def alarm(self):
        self._control("set_vm_memory_high_watermark", "absolute", "1")

    def calm(self):
        self._control("set_vm_memory_high_watermark", "0.4")

    def list_connections(self):
        return self._control("list_connections", "--no-table-headers", "pid")

    def list_queues(self, prefix):
        columns = ["name", "messages_ready", "messages_unacknowledged", "consumers"]
        listing = self._control("list_queues", "--no-table-headers", *columns)
        return "\n".join(line for line in listing.splitlines() if line.startswith(prefix))

    def _control(self, *arguments):
        command = [executable("rabbitmqctl", self.PROGRAMS), "--quiet", *arguments]
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment(), timeout=60
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"rabbitmqctl {arguments[0]} did not end within 60 s{self.end_of_log()}") from None
        if result.returncode != 0:
            raise ServiceError(f"rabbitmqctl {arguments[0]} failed:\n{result.stderr or result.stdout}")
        return result.stdout


def rabbitmq_user(name, password, tags):
    """A user in the format of definitions: the salt, then the hash of salt and password."""
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }


class PostgreSql(Service):
    """PostgreSQL with the durability of production: a commit is on disk when it returns."""

    name = "postgres"
    # Fast shutdown: open transactions are rolled back and clients disconnected.
    stop_signal = signal.SIGINT
    # Immediate shutdown: no checkpoint, so the next start recovers as after a crash. SIGKILL would leave shared memory
    # behind, which is in no folder.
    quick_signal = signal.SIGQUIT
    SUPERUSER = "pixwarden"

    def __init__(self, run, prefix=""):
        super().__init__(run, prefix)
        self.password = secrets.token_hex(12)
        self.restricted_password = restricted_password()
        self.user = unprivileged_user()
        self.programs = sorted(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True
        )

    def prepare(self):
        password_file = self.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if self.user:
            for path in (self.folder, password_file):
                shutil.chown(path, self.user)
        options = ["--pgdata=data", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        options += [f"--username={self.SUPERUSER}", "--pwfile=password", "--auth=scram-sha-256"]
        result = subprocess.run(
            [executable("initdb", *self.programs), *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment(),
            timeout=self.start_limit_s,
            **as_user(self.user),
        )
        if result.returncode != 0:
            raise ServiceError(f"initdb failed:\n{result.stdout}{result.stderr}")
        # The server accepts no key that another user can read.
        for source, name in ((self.run.certificates.server, "server.crt"), (self.run.certificates.server_key, "server.key")):
            target = self.folder / "data" / name
            shutil.copy(source, target)
            target.chmod(0o600)
            if self.user:
                shutil.chown(target, self.user)

    def set_up(self):
        """Creates the roles of deploy/. Each test sets up what they may do in its database."""
        roles = (DEPLOY / "postgres" / "roles.sql").read_text()
        for role in ("owner", "worker", "operator", "reader"):
            roles += f"ALTER ROLE pixwarden_{role} PASSWORD '{self.restricted_password}';\n"
        psql = [executable("psql", *self.programs), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file=-"]
        psql += [f"--host={LOOPBACK}", f"--port={self.port}", f"--username={self.SUPERUSER}", "postgres"]
        environment = {**self.environment(), "PGPASSWORD": self.password}
        result = subprocess.run(psql, input=roles, capture_output=True, text=True, env=environment, timeout=60)
        if result.returncode != 0:
            raise ServiceError(f"deploy/postgres/roles.sql failed:\n{result.stderr}")

    def command(self):
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "ssl": "on",
        }
        return [executable("postgres", *self.programs), "-D", self.folder / "data"] + [
            part for name, value in settings.items() for part in ("-c", f"{name}={value}")
        ]

    def is_ready(self):
        ready = [executable("pg_isready", *self.programs), "--quiet", "-h", LOOPBACK, "-p", str(self.port), "-t", "2"]
        return subprocess.run(ready, env=self.environment()).returncode == 0

    def exports(self):
        return {
            "POSTGRES_URL": f"postgres://{self.SUPERUSER}:{self.password}@{LOOPBACK}:{self.port}/postgres",
            "POSTGRES_PASSWORD": self.restricted_password,
        }


class Moto(Service):
    """moto's S3 server, in memory. It keeps versions, and checks signatures and permissions."""

    name = "objects"
    KIND = "moto"
    REGION = "us-east-1"

    def prepare(self):
        policy = (DEPLOY / "s3" / "policy.json").read_text().replace(":::uploads", ":::it-*")
        (self.folder / "policy.json").write_text(policy)

    def command(self):
        program = [TOOLS / "venv" / "bin" / "python", ROOT / "tests" / "services" / "moto_s3.py"]
        return [*program, self.port, self.folder / "keys.json", self.folder / "policy.json"]

    def is_ready(self):
        return answers_http(self.port, "/moto-api/")

    def exports(self):
        users = json.loads((self.folder / "keys.json").read_text())
        return s3_exports(self, users["owner"], users["reader"])


class Garage(Service):
    """Garage, an S3 server that checks signatures and permissions and has no versions."""

    name = "objects"
    KIND = "garage"
    REGION = "garage"
    # Its orderly stop serves open connections for ten more seconds.
    stop_signal = signal.SIGKILL

    def __init__(self, run):
        super().__init__(run)
        self.rpc_port = run.ports.take()
        self.owner = {"access_key": f"GK{secrets.token_hex(12)}", "secret_key": secrets.token_hex(32)}
        self.reader = {"access_key": f"GK{secrets.token_hex(12)}", "secret_key": secrets.token_hex(32)}

    def prepare(self):
        (self.folder / "garage.toml").write_text(
            f"""metadata_dir = "{self.folder}/metadata"
data_dir = "{self.folder}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "{LOOPBACK}:{self.rpc_port}"
rpc_public_addr = "{LOOPBACK}:{self.rpc_port}"
rpc_secret = "{secrets.token_hex(32)}"

[s3_api]
s3_region = "{self.REGION}"
api_bind_addr = "{LOOPBACK}:{self.port}"
"""
        )

    def command(self):
        # These options make a layout of one node and a key that may create buckets.
        return [*self.program(), "server", "--single-node", "--default-access-key"]

    def program(self):
        return [executable("garage", TOOLS / "garage" / "bin"), "-c", self.folder / "garage.toml"]

    def set_up(self):
        self._control("key", "import", "--yes", "-n", "reader", *self.reader.values())

    def make_bucket(self, bucket):
        """Creates a bucket in which the owner's key may write, and which the reader's key may read and list.

        A bucket that is created over S3 is visible to one key only.
        """
        self._control("bucket", "create", bucket)
        self._control("bucket", "allow", "--read", "--write", bucket, "--key", self.owner["access_key"])
        self._control("bucket", "allow", "--read", bucket, "--key", self.reader["access_key"])

    def _control(self, *arguments):
        command = [*self.program(), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment(), timeout=60)
        if result.returncode != 0:
            raise ServiceError(f"garage {' '.join(arguments[:2])} failed:\n{result.stderr}")

    def variables(self):
        return dict(zip(("GARAGE_DEFAULT_ACCESS_KEY", "GARAGE_DEFAULT_SECRET_KEY"), self.owner.values()))

    def is_ready(self):
        return answers_http(self.port, "/")

    def exports(self):
        return s3_exports(self, self.owner, self.reader)


def s3_exports(server, owner, reader):
    return {
        "S3_SERVER": server.KIND,
        "S3_REGION": server.REGION,
        "S3_ACCESS_KEY": owner["access_key"],
        "S3_SECRET_KEY": owner["secret_key"],
        "S3_READ_ACCESS_KEY": reader["access_key"],
        "S3_READ_SECRET_KEY": reader["secret_key"],
    }


class Front(Service):
    """What clients of the S3 server connect to. Stopping it stops no server, so the objects survive.

    It has three ports: one without TLS, one with a valid certificate, and one with an expired certificate.
    """

    name = "s3"

    def __init__(self, run, server, prefix=""):
        super().__init__(run, prefix)
        self.tls_port, self.expired_port = run.ports.take(), run.ports.take()
        self.server = server

    def command(self):
        tls = self.run.certificates
        program = [sys.executable, ROOT / "tests" / "services" / "front.py", self.server.port, self.port]
        return [*program, f"{self.tls_port}={tls.server}={tls.server_key}", f"{self.expired_port}={tls.expired}={tls.server_key}"]

    def exports(self):
        return {
            "S3_ENDPOINT": f"http://{LOOPBACK}:{self.port}",
            "S3_TLS_PORT": str(self.tls_port),
            "S3_EXPIRED_PORT": str(self.expired_port),
        }


class Run:
    """All services of one run, in its folder."""

    def __init__(self, folder, check, s3_server):
        """`check` is called while the run waits for something. It raises when the run is to end."""
        self.folder = folder
        self.state = state_file(folder)
        self.check = check
        self.ports = Ports()
        mapper = PortMapper(self)
        objects = {server.KIND: server for server in (Moto, Garage)}[s3_server](self)
        self.started = [mapper, RabbitMq(self, mapper), objects, PostgreSql(self), Front(self, objects)]
        # These are started when a test needs them.
        self.stoppable = [RabbitMq(self, mapper, STOPPABLE), PostgreSql(self, STOPPABLE), Front(self, objects, STOPPABLE)]
        self.services = self.started + self.stoppable
        self.certificates = certificates.Certificates(folder / "certificates")

    def start(self):
        self.certificates.make()
        # RabbitMQ takes longest and is launched early. The others start meanwhile.
        for service in self.started:
            service.launch()
        for service in self.started:
            service.await_ready()

    def environment(self):
        """The variables for the tests."""
        variables = {STATE_VARIABLE: str(self.state), "TEST_SERVICES": str(ROOT / "tests" / "services" / "control")}
        variables.update(self.certificates.exports())
        for service in self.services:
            prefix = "TEST_STOPPABLE_" if service.prefix else "TEST_"
            variables.update({prefix + name: value for name, value in service.exports().items()})
        return variables

    def status(self):
        return "\n".join(
            f"{service.name}\t{'running' if service.is_running() else 'stopped'}\t{LOOPBACK}:{service.port}"
            for service in self.services
        )

    def report_crashes(self):
        for service in self.services:
            if service.wanted and not service.is_running():
                service.wanted = False
                say(f"{service.name} ended unexpectedly, {service.how_it_ended()}{service.end_of_log()}")

    def end(self):
        for service in self.services:
            service.end()
        for service in self.services:
            service.await_end()
        kill_marked(self.state)
