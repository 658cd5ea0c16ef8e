"""Dockerfile, .dockerignore and docker-compose.yml, checked without a Docker engine."""

import fnmatch
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from common import NO_SECRET, PROGRAMS, ROOT, SECRET_NAME, option_variables
from dockerfile_parse import DockerfileParser

# Services that end with success and need no health check.
ONE_SHOTS = {"migrate", "samples-upload", "samples"}


def findings():
    dockerfile = DockerfileParser(path=str(ROOT / "Dockerfile"))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    yield from parsers()
    yield from copies(dockerfile)
    yield from stages(dockerfile)
    yield from features(dockerfile)
    yield from versions(dockerfile)
    yield from images(dockerfile, compose)
    yield from order(compose)
    yield from variables(compose)
    yield from secrets(compose)
    yield from garage(compose)
    yield from http(compose)


def parsers():
    """Findings of external tools about syntax and schema."""
    commands = {
        "docker-compose.yml": [PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"],
        # DL3008 requires pinned Debian packages, but Debian's mirrors keep only the latest version of each.
        "Dockerfile": [PROGRAMS / "hadolint", "--no-color", "--ignore", "DL3008"],
    }
    for file, command in commands.items():
        result = subprocess.run([*command, ROOT / file], check=False, capture_output=True, text=True)
        if result.returncode != 0:
            yield f"{file}: {Path(command[0]).name} failed:\n{result.stdout}{result.stderr}"


def copies(dockerfile):
    """Every path that COPY takes exists and is not ignored, and no other path is sent to the builder."""
    # .dockerignore ignores everything except the lines that begin with "!".
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    if lines[:1] != ["*"] or not all(line.startswith("!") for line in lines[1:]):
        yield '.dockerignore: expected "*" and then exceptions only'
    kept = [line.removeprefix("!") for line in lines[1:]]
    copied = set()
    for words in instructions(dockerfile, "COPY"):
        if words[0].startswith("--from="):
            continue
        copied.update(words[:-1])
    for source in sorted(copied):
        if not (ROOT / source).exists():
            yield f"Dockerfile: COPY {source}: the file does not exist"
        if not any(source == path or source.startswith(f"{path}/") for path in kept):
            yield f"Dockerfile: COPY {source}: .dockerignore excludes it"
    for path in kept:
        if path not in copied:
            yield f".dockerignore: {path} is sent to the builder, but no COPY uses it"


def stages(dockerfile):
    """Each COPY --from names an earlier stage; the final images are set up for an unprivileged user."""
    seen, users, last = [], {}, None
    for instruction in dockerfile.structure:
        words = instruction["value"].split()
        if instruction["instruction"] == "FROM":
            last = words[-1]
            seen.append(last)
        elif instruction["instruction"] == "COPY" and words[0].startswith("--from="):
            if words[0].removeprefix("--from=") not in seen[:-1]:
                yield f"Dockerfile: {instruction['content'].strip()}: no such stage before {last}"
        elif instruction["instruction"] == "USER":
            users[last] = words[0]
    if last != "cpu":
        yield f"Dockerfile: the last stage, the default target, is {last} and not cpu"
    for target in ("cpu", "cuda"):
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users.get(target, "")):
            yield f"Dockerfile: {target} does not run as an unprivileged user given by number"


def features(dockerfile):
    """A released program has no planted bugs."""
    for words in instructions(dockerfile, "RUN"):
        if "fault-injection" in " ".join(words) or "--all-features" in words:
            yield "Dockerfile: the program is built with the feature fault-injection"


def versions(dockerfile):
    """Versions are the same as elsewhere in the project."""
    toolchain = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    builder = next(words[0] for words in instructions(dockerfile, "FROM") if words[-1] == "builder")
    if not builder.startswith(f"rust:{toolchain}."):
        yield f"Dockerfile: the builder is {builder}, but rust-version in Cargo.toml is {toolchain}"
    tested = re.search(r"^ONNXRUNTIME=(\S+)$", (ROOT / "tests/services/get").read_text(), re.MULTILINE)
    arguments = [words[0] for words in instructions(dockerfile, "ARG")]
    if f"ONNXRUNTIME={tested[1]}" not in arguments:
        yield f"Dockerfile: the tests run with ONNX Runtime {tested[1]}, the image with another: {arguments}"


def images(dockerfile, compose):
    """Tags name a release, not the newest image."""
    names = [words[0] for words in instructions(dockerfile, "FROM")]
    names += [service["image"] for service in compose["services"].values() if "image" in service]
    for name in names:
        tag = name.partition(":")[2]
        if not re.search(r"\d+\.\d+|\d{8}", tag):
            yield f"{name} is not pinned to a release"
    targets = {words[-1] for words in instructions(dockerfile, "FROM")}
    for name, service in compose["services"].items():
        if "build" in service and service["build"]["target"] not in targets:
            yield f"docker-compose.yml: {name} builds {service['build']['target']}, which the Dockerfile does not have"


def order(compose):
    """Dependencies between services exist and can be fulfilled."""
    services = compose["services"]
    for name, service in services.items():
        if name not in ONE_SHOTS and "healthcheck" not in service:
            yield f"docker-compose.yml: {name} has no health check"
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                yield f"docker-compose.yml: {name} waits for {other}, which is not a service"
            wanted = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
            if how["condition"] != wanted:
                yield f"docker-compose.yml: {name} waits for {other} to be {how['condition']}, expected {wanted}"
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                if not (ROOT / volume["source"]).is_dir():
                    yield f"docker-compose.yml: {name} mounts {volume['source']}, which does not exist"
            elif volume.partition(":")[0] not in compose["volumes"]:
                yield f"docker-compose.yml: {name} mounts {volume}, which is not under volumes"


def variables(compose):
    """Every PIXWARDEN_* variable has an option. The program only warns about one without."""
    known = option_variables()
    for name, service in compose["services"].items():
        for variable in service.get("environment", {}):
            if variable.startswith("PIXWARDEN_") and variable not in known:
                yield f"docker-compose.yml: {name} sets {variable}, which has no option"
    drain_s = tomllib.loads((ROOT / "pixwarden.example.toml").read_text())["worker"]["drain_ms"] / 1000
    for name, service in compose["services"].items():
        if name.startswith("worker") and float(service["stop_grace_period"].removesuffix("s")) <= drain_s:
            yield f"docker-compose.yml: {name} is killed before it has drained for {drain_s} s"


def secrets(compose):
    """No password or key looks like a real one, and services agree on each."""
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            inside = re.search(r"://[^:/]+:([^@]+)@", str(value))
            if SECRET_NAME.search(variable):
                inside = re.fullmatch(r"(.*)", str(value))
            if inside and not NO_SECRET.fullmatch(inside[1]):
                yield f"docker-compose.yml: {name} sets {variable} to a value that looks like a real secret"
    services = compose["services"]
    worker = services["worker"]["environment"]
    for url, password in (
        (worker["PIXWARDEN_QUEUE"], services["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_PASS"]),
        (worker["PIXWARDEN_LEDGER"], services["postgres"]["environment"]["POSTGRES_PASSWORD"]),
    ):
        if f":{password}@" not in url:
            yield f"docker-compose.yml: {url} does not have the password of its service"


def garage(compose):
    """Garage's configuration agrees with its clients'."""
    settings = tomllib.loads(compose["configs"]["garage"]["content"])
    service, worker = compose["services"]["s3"], compose["services"]["worker"]["environment"]
    port = settings["s3_api"]["api_bind_addr"].rpartition(":")[2]
    if worker["AWS_ENDPOINT_URL_S3"] != f"http://s3:{port}":
        yield f"docker-compose.yml: Garage listens on port {port}, not on {worker['AWS_ENDPOINT_URL_S3']}"
    if worker["AWS_REGION"] != settings["s3_api"]["s3_region"]:
        yield "docker-compose.yml: Garage checks signatures for another region than the worker's"
    if not fnmatch.fnmatchcase(service["environment"]["GARAGE_DEFAULT_BUCKET"], worker["PIXWARDEN_BUCKETS"]):
        yield "docker-compose.yml: the worker does not allow the bucket that Garage creates"
    if not re.fullmatch(r"GK[0-9a-f]{24}", worker["AWS_ACCESS_KEY_ID"]):
        yield "docker-compose.yml: Garage does not accept this access key"
    if not re.fullmatch(r"[0-9a-f]{64}", worker["AWS_SECRET_ACCESS_KEY"]):
        yield "docker-compose.yml: Garage does not accept this secret key"


def http(compose):
    """Ports are published to this machine only, and the key of the page is the one in its comment."""
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"docker-compose.yml: {name} publishes {port} to other machines"
    content = compose["configs"]["http"]["content"]
    options = tomllib.loads(content)["http"]
    key = re.search(r"# The key is (\S+)\.$", content, re.MULTILINE)[1]
    if [one["sha256"] for one in options["keys"]] != [hashlib.sha256(key.encode()).hexdigest()]:
        yield f"docker-compose.yml: {key} is not the key of the configuration"
    if not NO_SECRET.search(key):
        yield f"docker-compose.yml: {key} looks like a real secret"
    inside = options["listen"].rpartition(":")[2]
    if compose["services"]["serve"]["ports"] != [f"127.0.0.1:{inside}:{inside}"]:
        yield f"docker-compose.yml: serve listens on port {inside}, which is not published"


def instructions(dockerfile, name):
    return [entry["value"].split() for entry in dockerfile.structure if entry["instruction"] == name]
