"""Alerts and dashboard: the queries parse and name existing metrics, and the alerts fire when they should.

`promtool` runs alerts_test.yaml. Grafana's model of a dashboard must read every field of ours.
"""

import collections
import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import yaml
from common import ROOT
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

CONSTANTS = ROOT / "src/telemetry/metrics/table.rs"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
GUIDE = ROOT / "docs/operations.md"
ROLES = ROOT / "deploy/postgres/roles.sql"
# The suffixes of a histogram's series.
SERIES = re.compile(r"_(bucket|sum|count)$")


def findings():
    known = set(re.findall(r'"(pixwarden_[a-z0-9_]+)"', CONSTANTS.read_text()))
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [("alerts.yaml", rule["expr"]) for rule in rules]
    queries += [("dashboard.json", target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for where, query in queries:
        yield from parsed(where, query, known)
    # Documents also name the database's roles.
    roles = set(re.findall(r"\bpixwarden_\w+", ROLES.read_text()))
    for prose in [ROOT / "README.md", ROOT / "deploy/kubernetes/base/scaling.yaml", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in sorted(set(re.findall(r"\bpixwarden_[a-z0-9_]*[a-z0-9]\b", prose.read_text()))):
            if name not in known | roles and SERIES.sub("", name) not in known:
                yield f"{prose.relative_to(ROOT)}: there is no metric {name}"
    yield from runbooks(rules)
    yield from promtool()
    yield from grafana(dashboard)


def parsed(where, query, known):
    """The query's syntax and the metrics in it."""
    # Grafana replaces these variables before it sends the query.
    concrete = query.replace("$__rate_interval", "1m").replace("$job", "pixwarden")
    try:
        tree = promql_parser.parse(concrete)
    except ValueError as error:
        yield f"{where}: {query}: {error}"
        return
    names = {selector.name for selector in selectors(tree)}
    for name in sorted(names):
        if name not in known and SERIES.sub("", name) not in known:
            yield f"{where}: there is no metric {name}"
    if not names:
        yield f"{where}: {query} has no metric"


def selectors(expression):
    """Every selector of series in an expression, however deep."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for field in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        below = getattr(expression, field, None)
        for part in below if isinstance(below, list) else [below]:
            if part is not None:
                yield from selectors(part)


def runbooks(rules):
    """Each alert links to its section of the guide, and every section has an alert."""
    anchors = {heading.lower() for heading in re.findall(r"^#+ (Pixwarden[A-Za-z]+)$", GUIDE.read_text(), re.MULTILINE)}
    named = set()
    for rule in rules:
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        if ROOT / file != GUIDE or anchor not in anchors:
            yield f"alerts.yaml: {rule['alert']} links to {file}#{anchor}, which does not exist"
        if anchor != rule["alert"].lower():
            yield f"alerts.yaml: {rule['alert']} links to another alert's section"
        if rule["labels"]["severity"] not in {"critical", "warning"}:
            yield f"alerts.yaml: {rule['alert']} has the severity {rule['labels']['severity']}"
        named.add(anchor)
    for anchor in sorted(anchors - named):
        yield f"{GUIDE.relative_to(ROOT)}: {anchor} is not an alert"


def promtool():
    program = shutil.which("promtool") or ROOT / ".tools/promtool/promtool"
    if not Path(program).exists():
        yield "promtool not found\n  hint: tests/services/get promtool"
        return
    tests = ROOT / "tests/packaging/alerts_test.yaml"
    for command in (["check", "rules", ALERTS], ["test", "rules", tests]):
        result = subprocess.run([program, *command], check=False, capture_output=True, text=True)
        if result.returncode != 0:
            yield f"promtool {command[0]} failed:\n{result.stdout}{result.stderr}"
    tested = set(re.findall(r'alertname="([A-Za-z]+)"', tests.read_text()))
    for untested in sorted({rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]} - tested):
        yield f"{tests.name}: {untested} has no test in which it fires"


def grafana(dashboard):
    """Grafana's model reads every field, and no panel covers another."""
    plugins.register_default_plugins()
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))
    for path in unread(dashboard, read):
        yield f"dashboard.json: Grafana does not read {path}"
    ids = collections.Counter(panel["id"] for panel in dashboard["panels"])
    if max(ids.values()) > 1:
        yield f"dashboard.json: two panels have the same id: {ids}"
    cells = collections.Counter(cell for panel in dashboard["panels"] for cell in area(panel["gridPos"]))
    if max(cells.values()) > 1 or max(x for x, _ in cells) >= 24:
        yield "dashboard.json: panels overlap or leave the grid"


def unread(wanted, read, path=""):
    """The paths of values that are missing or different in the second JSON value."""
    if isinstance(wanted, dict) and isinstance(read, dict):
        for key, value in wanted.items():
            yield from unread(value, read.get(key), f"{path}/{key}")
    elif isinstance(wanted, list) and isinstance(read, list) and len(wanted) == len(read):
        for n, (one, other) in enumerate(zip(wanted, read, strict=True)):
            yield from unread(one, other, f"{path}/{n}")
    elif wanted != read:
        yield path


def area(place):
    return [
        (x, y)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
