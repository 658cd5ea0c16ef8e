"""Kubernetes manifests, rendered and validated against the schemas of their readers; and the systemd unit."""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from common import NO_SECRET, PROGRAMS, ROOT, SECRET_NAME, example_options, leaves, option_variables

KUBERNETES = "1.37"
# Kinds that are not part of Kubernetes.
OTHERS = {
    "ScaledObject": keda.ScaledObject,
    "TriggerAuthentication": keda.TriggerAuthentication,
    "PodMonitor": prometheus.PodMonitor,
}
BASE = ROOT / "deploy/kubernetes/base"
UNIT = ROOT / "deploy/systemd/pixwarden.service"
# System calls that no allowed group of systemd contains.
CONFINING_CALLS = ["seccomp", "landlock_create_ruleset", "landlock_restrict_self"]
# The parameters of KEDA's rabbitmq scaler, from its documentation. The schema allows any metadata in a trigger.
RABBITMQ_TRIGGER = {"protocol", "mode", "queueName", "value", "activationValue", "vhostName", "hostFromEnv", "unsafeSsl"}


def findings():
    secret, migrating = (yaml.safe_load((BASE / f"{name}.example.yaml").read_text()) for name in ("secret", "secret-migrate"))
    for where in ("base", "overlays/gpu", "overlays/http"):
        rendered, error = render(where)
        if error:
            yield error
            continue
        wrong = list(schemas([*rendered, secret, migrating]))
        # Without valid manifests the other checks would fail.
        if not wrong:
            wrong = [
                *references(rendered, secret, migrating),
                *restricted(rendered),
                *probes(rendered),
                *lanes(rendered),
            ]
        yield from (f"deploy/kubernetes/{where}: {finding}" for finding in wrong)
    yield from gpu(render("base")[0], render("overlays/gpu")[0])
    yield from http(render("base")[0], render("overlays/http")[0])
    yield from options(secret["stringData"])
    yield from options(migrating["stringData"])
    yield from unit()


def render(where):
    """The objects that `kubectl apply -k` would send, or the error."""
    command = [PROGRAMS / "kubectl", "kustomize", ROOT / "deploy/kubernetes" / where]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        return [], f"deploy/kubernetes/{where}: kubectl kustomize failed:\n{result.stderr}"
    return list(yaml.safe_load_all(result.stdout)), None


def schemas(rendered):
    for thing in rendered:
        kind = thing["kind"]
        try:
            if kind in OTHERS:
                read = OTHERS[kind].model_validate(thing).model_dump(mode="json", by_alias=True, exclude_unset=True)
                # These models drop unknown fields instead of rejecting them.
                if read != thing:
                    yield f"{kind}: it has fields that its schema does not have: {json.dumps(thing)}\nread as {json.dumps(read)}"
            else:
                kubernetes_validate.validate(thing, KUBERNETES, strict=True)
        except (kubernetes_validate.ValidationError, ValueError) as error:
            yield f"{kind} {thing['metadata']['name']}: {error}"


def references(rendered, secret, migrating):
    """Every reference names an existing object."""
    worker = one(rendered, "Deployment")
    pod = worker["spec"]["template"]
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in [*rendered, secret, migrating]}
    wanted = {("ServiceAccount", pod["spec"]["serviceAccountName"])}
    wanted |= {("ConfigMap", volume["configMap"]["name"]) for volume in pod["spec"]["volumes"] if "configMap" in volume}
    for container in containers(worker):
        wanted |= {("Secret", source["secretRef"]["name"]) for source in container["envFrom"]}
        wanted_mounts = {mount["name"] for mount in container["volumeMounts"]}
        if wanted_mounts != {volume["name"] for volume in pod["spec"]["volumes"]}:
            yield f"{container['name']} mounts {wanted_mounts}, which are not the pod's volumes"
        if not re.search(r":\d+\.\d+\.\d+-(cpu|cuda)$", container["image"]):
            yield f"{container['name']}: {container['image']} is not pinned to a release"
    scaled, broker = one(rendered, "ScaledObject"), one(rendered, "TriggerAuthentication")
    wanted.add(("Deployment", scaled["spec"]["scaleTargetRef"]["name"]))
    for trigger in scaled["spec"]["triggers"]:
        wanted.add(("TriggerAuthentication", trigger["authenticationRef"]["name"]))
    for parameter in broker["spec"]["secretTargetRef"]:
        wanted.add(("Secret", parameter["name"]))
        if parameter["key"] not in secret["stringData"]:
            yield f"KEDA reads {parameter['key']}, which the secret does not have"
    for missing in sorted(wanted - names):
        yield f"{' '.join(missing)} is referenced but does not exist"

    labels = pod["metadata"]["labels"]
    policy = one(rendered, "NetworkPolicy")["spec"]
    selectors = {
        "Deployment": worker["spec"]["selector"],
        "PodDisruptionBudget": one(rendered, "PodDisruptionBudget")["spec"]["selector"],
        "PodMonitor": one(rendered, "PodMonitor")["spec"]["selector"],
        "NetworkPolicy": policy["podSelector"],
    }
    for kind, selector in selectors.items():
        if not selector["matchLabels"].items() <= labels.items():
            yield f"{kind} selects {selector['matchLabels']}, the pod has {labels}"
    if "replicas" in worker["spec"]:
        yield "Deployment has replicas: every apply would reset the autoscaler's number"
    for thing in rendered:
        if thing["kind"] != "Namespace" and thing["metadata"]["namespace"] != secret["metadata"]["namespace"]:
            yield f"{thing['kind']} is in another namespace than the secret"


def restricted(rendered):
    """The pod meets the namespace's pod security standard and has a read-only file system."""
    enforced = one(rendered, "Namespace")["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
    if enforced != "restricted":
        yield f"Namespace enforces {enforced}"
    worker = one(rendered, "Deployment")
    pod = worker["spec"]["template"]["spec"]
    context = pod["securityContext"]
    if not context["runAsNonRoot"] or context["seccompProfile"]["type"] != "RuntimeDefault":
        yield f"the pod's security context is {context}"
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if (context["runAsUser"], context["runAsGroup"]) != (int(user[1]), int(user[2])):
        yield f"the pod does not run as the image's user, {user[0]}"
    if pod["automountServiceAccountToken"]:
        yield "the pod gets a token that it does not need"
    if pod.get("enableServiceLinks", True):
        yield "the pod gets variables PIXWARDEN_* from services of that name"
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in containers(worker):
        if container["securityContext"] != expected:
            yield f"{container['name']} has the security context {container['securityContext']}"
        if set(container["resources"]) != {"requests", "limits"}:
            yield f"{container['name']} has no requests or no limits"


def probes(rendered):
    """Kubelet, Prometheus and network policy use the worker's port, and draining has enough time."""
    worker = one(rendered, "Deployment")["spec"]["template"]["spec"]
    container = worker["containers"][0]
    configuration = tomllib.loads(one(rendered, "ConfigMap")["data"]["pixwarden.toml"])
    (port,) = (port for port in container["ports"] if port["name"] == "metrics")
    listen = configuration.get("metrics", {}).get("listen")
    if listen != f"0.0.0.0:{port['containerPort']}":
        yield f"the worker listens on {listen}, not on port {port['containerPort']}"
    for probe, path in (("startup", "/healthz"), ("liveness", "/healthz"), ("readiness", "/readyz")):
        asked = container[f"{probe}Probe"]["httpGet"]
        if asked != {"path": path, "port": port["name"]}:
            yield f"the {probe} probe requests {asked}"
    (endpoint,) = one(rendered, "PodMonitor")["spec"]["podMetricsEndpoints"]
    ingress = one(rendered, "NetworkPolicy")["spec"]["ingress"][0]
    if endpoint["port"] != port["name"] or ingress["ports"] != [{"port": port["name"]}]:
        yield f"Prometheus scrapes {endpoint['port']}, but the policy allows {ingress['ports']}"
    drain_s = configuration["worker"]["drain_ms"] / 1000
    if worker["terminationGracePeriodSeconds"] <= drain_s:
        yield f"a worker is killed before it has drained for {drain_s} s"


def lanes(rendered):
    """One trigger per lane, without parameters that KEDA would ignore."""
    configuration = tomllib.loads(one(rendered, "ConfigMap")["data"]["pixwarden.toml"])
    prefix = configuration.get("prefix", example_options()["prefix"])
    spec = one(rendered, "ScaledObject")["spec"]
    queues = [trigger["metadata"]["queueName"] for trigger in spec["triggers"]]
    if sorted(queues) != [f"{prefix}.jobs.backfill", f"{prefix}.jobs.live"]:
        yield f"KEDA polls {queues}"
    for trigger in spec["triggers"]:
        if trigger["type"] != "rabbitmq" or trigger["metadata"]["mode"] != "QueueLength":
            yield f"a trigger is {trigger}"
        if unknown := trigger["metadata"].keys() - RABBITMQ_TRIGGER:
            yield f"KEDA has no parameters {sorted(unknown)}"
    if spec["minReplicaCount"] < 1:
        yield "without a worker, uploads wait until one starts, and no worker publishes the events in the outbox"


def gpu(base, overlay):
    """The overlay differs from the base only in what a GPU needs."""
    container = one(overlay, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    if container["resources"]["limits"].get("nvidia.com/gpu") != "1":
        yield "overlays/gpu: the worker does not request a GPU"
    if {"name": "PIXWARDEN_INFERENCE_DEVICE", "value": "cuda"} not in container["env"]:
        yield "overlays/gpu: the worker may fall back to the CPU"
    for one_container in containers(one(overlay, "Deployment")):
        if not one_container["image"].endswith("-cuda"):
            yield f"overlays/gpu: {one_container['name']} runs {one_container['image']}"
    for before, after in zip(base, overlay, strict=True):
        if before["kind"] != "Deployment" and before != after:
            yield f"overlays/gpu: {before['kind']} differs from the base's"


def http(base, overlay):
    """The overlay differs from the base only in what HTTP needs: a service, its port, who may connect, and keys."""
    worker, service = one(overlay, "Deployment"), one(overlay, "Service")
    pod = worker["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    if not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items():
        yield f"overlays/http: the service selects {service['spec']['selector']}, the pod has {pod['metadata']['labels']}"
    (port,) = service["spec"]["ports"]
    options = tomllib.loads(one(overlay, "ConfigMap")["data"]["pixwarden.toml"])["http"]
    if options["listen"] != f"0.0.0.0:{ports.get(port['targetPort'])}":
        yield f"overlays/http: the service connects to {port['targetPort']}, the worker listens on {options['listen']}"
    if [{"port": port["targetPort"]}] not in [rule["ports"] for rule in one(overlay, "NetworkPolicy")["spec"]["ingress"]]:
        yield f"overlays/http: the policy does not allow {port['targetPort']}"
    for key in options["keys"]:
        if not NO_SECRET.fullmatch(key["sha256"]):
            yield f"overlays/http: the key {key['name']} may be a real one"
    base_options, own = (
        tomllib.loads((folder / "pixwarden.toml").read_text()) for folder in (BASE, BASE.parent / "overlays/http")
    )
    if base_options != {name: value for name, value in own.items() if name != "http"}:
        yield "overlays/http: pixwarden.toml differs from the base's in more than [http]"
    others = {"Deployment", "NetworkPolicy", "ConfigMap", "Service"}
    if [thing for thing in base if thing["kind"] not in others] != [thing for thing in overlay if thing["kind"] not in others]:
        yield "overlays/http: more differs from the base than HTTP needs"
    ingress = yaml.safe_load((BASE.parent / "overlays/http/ingress.example.yaml").read_text())
    yield from (f"overlays/http: {finding}" for finding in schemas([ingress]))
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    if path["backend"]["service"] != {"name": service["metadata"]["name"], "port": {"name": port["name"]}}:
        yield f"overlays/http: the ingress sends to {path['backend']['service']}"
    if options["hosts"] != [rule["host"]]:
        yield f"overlays/http: the ingress is at {rule['host']}, http.hosts has {options['hosts']}"


def options(secret):
    """Options and variables exist, and no value looks like a real secret."""
    known = option_variables()
    configuration = tomllib.loads((BASE.parent / "overlays/http/pixwarden.toml").read_text())
    environment = dict(line.split("=", 1) for line in lines(UNIT.parent / "pixwarden.env.example") if "=" in line)
    for path in leaves(configuration):
        if "PIXWARDEN_" + "_".join(path).upper() not in known:
            yield f"deploy/kubernetes/overlays/http/pixwarden.toml: {'.'.join(path)} is not an option"
    for where, variables in (("base/secret.example.yaml", secret), ("pixwarden.env.example", environment)):
        for variable, value in variables.items():
            if variable.startswith("PIXWARDEN_") and variable not in known:
                yield f"{where}: {variable} has no option"
            inside = re.search(r"://[^:/]+:([^@]+)@", value)
            if SECRET_NAME.search(variable):
                inside = re.fullmatch(r"(.*)", value)
            if inside and not NO_SECRET.fullmatch(inside[1]):
                yield f"{where}: {variable} looks like a real secret"


def unit():
    """systemd's verification of the unit, with a replacement for the program, which is not installed here."""
    settings = dict(line.split("=", 1) for line in lines(UNIT) if "=" in line)
    if int(settings["TimeoutStopSec"]) <= example_options()["worker"]["drain_ms"] / 1000:
        yield "pixwarden.service: the worker is killed before it has drained"
    starts = [line for line in lines(UNIT.parent / "pixwarden-serve.service.d/serve.conf") if line.startswith("ExecStart=")]
    if len(starts) != 2 or starts[0] != "ExecStart=":
        yield "pixwarden-serve.service: it would start the worker too"
    if settings.get("KillMode") != "mixed":
        yield "pixwarden.service: decoders are stopped before the worker has drained"
    allowed = [line.split("=", 1)[1].split() for line in lines(UNIT) if re.match("SystemCallFilter=[^~]", line)]
    for call in CONFINING_CALLS:
        if call not in itertools.chain.from_iterable(allowed):
            yield f"pixwarden.service: decoders cannot be confined, SystemCallFilter does not allow {call}"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        print("packaging: the unit's settings were not verified, because systemd-analyze is not installed")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for unit in (UNIT.name, "pixwarden-serve.service"):
            copy = folder / unit
            copy.write_text(runnable(UNIT))
            # The folder of changes to a unit has its name.
            for change in (UNIT.parent / f"{unit}.d").glob("*.conf"):
                (folder / f"{unit}.d").mkdir(exist_ok=True)
                (folder / f"{unit}.d" / change.name).write_text(runnable(change))
            command = [analyze, "verify", "--recursive-errors=no", copy]
            result = subprocess.run(command, check=False, capture_output=True, text=True)
            # systemd-analyze only warns about an unknown setting.
            if result.returncode != 0 or UNIT.stem in result.stderr:
                yield f"{unit}: systemd-analyze failed:\n{result.stderr}"


def runnable(path):
    """The text of a unit with a program that is installed here."""
    return path.read_text().replace("/opt/pixwarden/pixwarden ", "/bin/true ")


def lines(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def one(things, kind):
    (thing,) = [thing for thing in things if thing["kind"] == kind]
    return thing


def containers(deployment):
    pod = deployment["spec"]["template"]["spec"]
    return [*pod["initContainers"], *pod["containers"]]
