"""The documented interfaces: the AsyncAPI document, the JSON Schemas, and an example of each message."""

import json
import re
import warnings

import yaml
from common import ROOT
from jsonschema import Draft202012Validator, SchemaError

with warnings.catch_warnings():
    # pydantic warns about fields with the name "schema".
    warnings.simplefilter("ignore")
    from asyncapi3.models.asyncapi import AsyncAPI3

DOCS = ROOT / "docs"
DOCUMENT = DOCS / "asyncapi.yaml"
EVENTS = {"passed", "noted", "cleared", "review", "flagged", "undecodable", "missing", "rejected", "failed"}


def findings():
    document = yaml.safe_load(DOCUMENT.read_text())
    try:
        AsyncAPI3.model_validate(document)
    except ValueError as error:
        yield f"asyncapi.yaml: {error}"
    yield from references(document, document)
    yield from names()
    yield from examples()


def references(part, document):
    """Every $ref has a target, in the document or in a file next to it."""
    if isinstance(part, list):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    target = part.get("$ref")
    if target is not None:
        found = document if target.startswith("#/") else (DOCS / target).exists() or None
        for key in target[2:].split("/") if target.startswith("#/") else []:
            found = found.get(key) if found is not None else None
        if found is None:
            yield f"asyncapi.yaml: {target} does not exist"
    for below in part.values():
        yield from references(below, document)


def names():
    """Names of exchanges, queues and headers are the same as in the program, with the default prefix."""
    text = DOCUMENT.read_text()
    topology = (ROOT / "src/broker/topology.rs").read_text()
    declared = {"pixwarden" + name for name in re.findall(r'format!\("\{\}(\.[a-z.]+)"', topology)}
    declared |= {f"pixwarden.jobs.{lane}" for lane in ("live", "backfill")}
    for name in sorted(set(re.findall(r"\bpixwarden\.[a-z.]*[a-z]", text)) - declared):
        yield f"asyncapi.yaml: {name} is not declared by the program"
    headers = set(re.findall(r'"(x-pixwarden-[a-z-]+)"', (ROOT / "src/broker.rs").read_text()))
    for name in sorted(headers ^ set(re.findall(r"x-pixwarden-[a-z-]+", text))):
        yield f"asyncapi.yaml: the header {name} is missing here or in the program"


def examples():
    """The schemas are valid, every example is valid, and every form and outcome has an example."""
    for kind in ("job", "event"):
        schema = json.loads((DOCS / f"schemas/{kind}.schema.json").read_text())
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            yield f"docs/schemas/{kind}.schema.json: {error.message}"
            continue
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        files = sorted((DOCS / f"examples/{kind}s").glob("*.json"))
        for file in files:
            for error in validator.iter_errors(json.loads(file.read_text())):
                yield f"{file.relative_to(ROOT)}: {error.message}"
        stems = {file.stem for file in files}
        if kind == "event" and stems != EVENTS:
            yield f"docs/examples/events: there are {sorted(stems)}"
        if kind == "job" and {stem[0] for stem in stems} != set("1234"):
            yield f"docs/examples/jobs: there are {sorted(stems)}"
