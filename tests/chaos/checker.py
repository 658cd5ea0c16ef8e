"""Checks a run: compares Pixwarden's promises with records that were made independently of it.

Every function depends only on the evidence, so that tests can pass evidence of any bug.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

LOST = "lost: confirmed jobs without an outcome"
DOUBLED = "doubled: jobs with several outcomes"
MISSING_EVENTS = "verdicts without their event"
UNPUBLISHED = "unpublished events in the outbox"
WRONG_OUTCOME = "unexpected outcomes"
FAILED = "jobs that failed because of an outage"
HISTORY = "verdicts whose history is wrong"
LAST_WORD = "verdicts of which a consumer keeps another outcome"
UNKNOWN_REVISION = "events of a revision that the ledger never had"
LEFT_OUT = "verdicts that the last rejudge left out"
TORN_IMPORT = "imports of which only a part is in the bank"
OLD_BANK = "verdicts that have asked an earlier version of the bank"
NOT_CLEARED = "images that passed again without image.cleared"

# A job without an id may meet the row of an earlier state of its object. This is in the reason of its dead letter.
OTHER_STATE = "another state of the object"
# The fault by which the rows of some jobs are refused.
POISON_FAULT = "ledger-poison-trigger"

# The policy of the workers. The other one judges only what was scored.
WORKERS_POLICY = "default"
SCORED = {"passed", "review", "flagged"}

# How often workers may die of one image: three times while it is screened alone (worker.deaths), once when it is delivered
# for the first time, once when it is delivered again, and as often when it comes back as a copy after a failed attempt.
DEATHS_OF_IMAGE = 10

# How many records of answered jobs a dying worker, and an outage of the ledger, may leave in the quarantine.
RECORDS_PER_DEATH = 2
RECORDS_PER_OUTAGE = 16

# How much each resource may grow from warm-up to the end of the run.
GROWTH = {"resident_mib": 50, "descriptors": 12, "broker_connections": 1, "ledger_connections": 16}


class Change(NamedTuple):
    """A change of a verdict, as the trigger in the database recorded it."""

    job_id: str
    before: str  # outcomes
    after: str
    revision_before: int = 1
    revision_after: int = 2
    cause: str = "replayed"
    is_same: bool = False  # nothing but the policy has changed


@dataclass
class Evidence:
    tried: dict = field(default_factory=dict)  # id → record, of every job that was published at least once
    confirmed: set = field(default_factory=set)  # ids whose publish was confirmed
    # rows: id, job_id, key, outcome, reason, attempts, has_metadata, revision, policy, judged_at
    verdicts: list = field(default_factory=list)
    # Hashes by import, the bank's version, and how many late verdicts have asked which version.
    bank: dict = field(default_factory=lambda: {"imports": {}, "version": 0, "asked": []})
    history: list = field(default_factory=list)  # rows of earlier revisions: id, outcome, revision, policy, judged_at
    audit: list = field(default_factory=list)  # a Change for each change of a verdict
    outbox: list = field(default_factory=list)  # rows: event id, whether published
    events: list = field(default_factory=list)  # as recorded by the listener
    queues: dict = field(default_factory=dict)  # name → messages, ready or not
    dead: list = field(default_factory=list)  # (job id, key, reason)
    false_responses: dict = field(default_factory=dict)  # key → kinds of false responses of the store proxy
    before: object = None  # monitor.Usage after warm-up
    after: object = None  # monitor.Usage after the faults
    unexpected: list = field(default_factory=list)  # workers that ended without being killed
    injected: set = field(default_factory=set)  # kinds of faults
    partial: list = field(default_factory=list)  # a Partial for each fault that concerned some jobs only
    sessions: list = field(default_factory=list)  # outages in which workers had too many sessions of the ledger
    deaths: int = 0  # of workers, for any reason
    ledger_faults: int = 0  # how often the ledger was disturbed
    suspects: list = field(default_factory=list)  # ids in the table of suspects at rest
    deaths_by_image: int = 0  # of workers
    begun_alone: list = field(default_factory=list)  # ids of verdicts whose screening was begun alone


@dataclass(frozen=True)
class Partial:
    """What happened during a fault that concerns some jobs only."""

    kind: str
    verdicts: int  # on jobs that it does not concern
    pauses: list  # why workers paused their intake


class Findings(list):
    """Broken promises, one line each."""

    def add(self, what, cases):
        """Adds a line if there are any cases."""
        cases = sorted(map(str, cases))
        if cases:
            self.append(f"{what}: {len(cases)}, such as {', '.join(cases[:5])}")


def check(evidence):
    """All broken promises; empty if every promise was kept."""
    findings = Findings()
    jobs = answerable(evidence.tried)
    rows = defaultdict(list)
    for row in evidence.verdicts:
        rows[name(row, jobs)].append(row)
    check_outcomes(evidence, jobs, rows, findings)
    check_revisions(evidence, findings)
    check_bank(evidence, findings)
    check_events(evidence, findings)
    check_queues(evidence, rows, findings)
    check_failures(evidence, jobs, rows, findings)
    check_partial_faults(evidence, jobs, rows, findings)
    check_quarantine(evidence, findings)
    check_growth(evidence.before, evidence.after, findings)
    findings.add("workers that ended without being killed", evidence.unexpected)
    return findings


def check_outcomes(evidence, jobs, rows, findings):
    findings.add(LOST, {job for job in jobs if job in evidence.confirmed} - set(rows))
    several = (job for job, answers in rows.items() if len(answers) > 1)
    findings.add(DOUBLED, (job for job in several if not has_two_versions(jobs.get(job), evidence)))
    findings.add("outcomes without a job", set(rows) - set(jobs))
    rewritten = (f"{change.job_id}: {change.before} to {change.after}" for change in evidence.audit if not is_allowed(change))
    findings.add("verdicts rewritten after their commit", rewritten)
    earlier = defaultdict(list)
    for state in evidence.history:
        earlier[state["id"]].append(state)
    findings.add(
        WRONG_OUTCOME,
        (
            f"{job}: {state['outcome']} instead of {jobs[job]['outcome']}" + by_other_policy(state)
            for job, answers in rows.items()
            for row in answers
            for state in [row, *earlier[row["id"]]]
            if job in jobs and state["outcome"] not in allowed_by(state["policy"], jobs[job], evidence.false_responses)
        ),
    )


def is_allowed(change):
    """Whether a verdict may change like this: a failure is replaced, or another policy judges the scores."""
    if change.is_same:
        # Another policy, or another version of its bank, says the same, and is recorded.
        return change.before == change.after
    if change.revision_after != change.revision_before + 1:
        return False
    if change.cause == "rejudged":
        return {change.before, change.after} <= SCORED
    return change.cause == "replayed" and change.before == "failed" and change.after not in ("deleted", "failed")


def by_other_policy(state):
    return "" if state["policy"] == WORKERS_POLICY else f" by the policy {state['policy']}"


def allowed_by(policy, record, false_responses):
    """The outcomes that a policy may give a job."""
    if policy == WORKERS_POLICY:
        return allowed(record, false_responses) | {"failed"}
    return set(record.get("opposite", ()))


def has_two_versions(record, evidence):
    """Whether a job may have two verdicts. It named neither id nor version, so its id covers what the store returned for
    the object, and the store proxy returned two different versions."""
    return record is not None and record["kind"] == "derived" and record["key"] in evidence.false_responses


def answerable(tried):
    """The jobs that must have an outcome. A job with the id of another job has none."""
    return {job: record for job, record in tried.items() if record["kind"] not in ("malformed", "conflict")}


def name(row, jobs):
    """The generator's name of a verdict's job: the job's id, or the key if the job named no id."""
    by_key = f"key:{row['key']}"
    return by_key if by_key in jobs else row["job_id"]


def allowed(record, false_responses):
    """The outcomes that a job may have. If the store proxy denied the object, `missing` is correct."""
    outcomes = {record["outcome"]}
    if false_responses.get(record["key"], set()) & {"missing", "wrong-etag"}:
        outcomes.add("missing")
    return outcomes


def check_revisions(evidence, findings):
    """The revisions of a verdict are numbered without gaps, none was judged before the one before it, and the history has
    each outcome that the trigger saw. The last rejudge reached every verdict, wherever an earlier one was interrupted."""
    history, changes = defaultdict(list), defaultdict(list)
    for state in evidence.history:
        history[state["id"]].append(state)
    for change in evidence.audit:
        if change.revision_after != change.revision_before:
            changes[change.job_id].append((change.revision_before, change.before))
    wrong = [f"{id}: a history without its verdict" for id in set(history) - {row["id"] for row in evidence.verdicts}]
    for row in evidence.verdicts:
        states = sorted(history[row["id"]], key=lambda state: state["revision"])
        numbers = [state["revision"] for state in [*states, row]]
        times = [state["judged_at"] for state in [*states, row]]
        if numbers != list(range(1, len(numbers) + 1)):
            wrong.append(f"{row['id']}: revisions {numbers}")
        elif times != sorted(times):
            wrong.append(f"{row['id']}: judged_at went back")
        elif [(state["revision"], state["outcome"]) for state in states] != sorted(changes[row["job_id"]]):
            wrong.append(f"{row['id']}: the history has {states}, and the changes were {changes[row['job_id']]}")
    findings.add(HISTORY, wrong)
    findings.add(LEFT_OUT, (row["id"] for row in evidence.verdicts if row["policy"] != WORKERS_POLICY))


def check_bank(evidence, findings):
    """An import is one version, whole or not at all, and every worker has it soon."""
    bank = evidence.bank
    sizes = bank["imports"]
    whole = max(sizes.values(), default=0)
    findings.add(TORN_IMPORT, (f"{number}: {size} of {whole}" for number, size in sizes.items() if size != whole))
    findings.add(TORN_IMPORT, [] if len(sizes) == bank["version"] else [f"{len(sizes)} in version {bank['version']}"])
    findings.add(OLD_BANK, (f"{n} asked {version}, not {bank['version']}" for version, n in bank["asked"] if version != bank["version"]))


def check_events(evidence, findings):
    """The last revision of every verdict must have an event, because all routing keys are published. Those of earlier
    revisions may be missing: what was not published yet is replaced by the event of the later one."""
    last = {row["id"]: row for row in evidence.verdicts}
    known = {(state["id"], state["revision"]): state["outcome"] for state in [*evidence.history, *evidence.verdicts]}
    ids, bodies, by_verdict = defaultdict(set), defaultdict(set), defaultdict(list)
    for event in evidence.events:
        ids[event["verdict_id"], event["revision"]].add(event["id"])
        bodies[event["id"]].add(event["body"])
        by_verdict[event["verdict_id"]].append(event)
    missing = (id for id, row in last.items() if (id, row["revision"]) not in ids)
    findings.add(MISSING_EVENTS, missing)
    findings.add("events without a verdict", set(by_verdict) - set(last))
    findings.add("revisions with several event ids", (f"{id} ({n})" for (id, n), found in ids.items() if len(found) > 1))
    findings.add("duplicate events that differ in their body", (event for event, seen in bodies.items() if len(seen) > 1))
    unknown = (
        f"{event['verdict_id']}: revision {event['revision']}, {event['outcome']}"
        for event in evidence.events
        if event["verdict_id"] in last and known.get((event["verdict_id"], event["revision"])) != event["outcome"]
    )
    findings.add(UNKNOWN_REVISION, unknown)
    # The contract's rule: of several events the latest `judged_at` counts, and among equals the highest revision.
    kept = {id: max(events, key=lambda event: (event["judged_at"], event["revision"])) for id, events in by_verdict.items()}
    heard = {id: row for id, row in last.items() if id in kept and (id, row["revision"]) in ids}
    differ = (f"{id}: {kept[id]['outcome']} instead of {row['outcome']}" for id, row in heard.items() if kept[id]["outcome"] != row["outcome"])
    findings.add(LAST_WORD, differ)
    not_cleared = (
        id
        for id, row in heard.items()
        if row["outcome"] == "passed" and any(event["outcome"] != "passed" for event in by_verdict[id])
        if not any(event["announced"] == "cleared" and event["revision"] == row["revision"] for event in by_verdict[id])
    )
    findings.add(NOT_CLEARED, not_cleared)
    findings.add(UNPUBLISHED, (id for id, published in evidence.outbox if not published))


def check_failures(evidence, jobs, rows, findings):
    """No outage makes a job fail: an image that kills processes does, and a row that the ledger refuses."""
    may_fail = {job for job, record in jobs.items() if record["outcome"] == "failed" or is_refused(record, evidence)}
    now = (
        f"{job}: {row['reason']}" for job, answers in rows.items() for row in answers if row["outcome"] == "failed" and job not in may_fail
    )
    before = (
        f"{change.job_id}: failed at first, then {change.after}"
        for change in evidence.audit
        if change.before == "failed" and change.job_id not in may_fail
    )
    findings.add(FAILED, [*now, *before])
    # What the sender attached is left out only where the ledger refuses the row.
    stripped = (
        f"{job}: {row['outcome']}"
        for job, answers in rows.items()
        for row in answers
        if job in jobs and jobs[job].get("has_metadata") and not row["has_metadata"]
        if not (row["outcome"] == "failed" and is_refused(jobs[job], evidence))
    )
    findings.add("verdicts without the metadata of their job", stripped)


def is_refused(record, evidence):
    """Whether the ledger refused the rows of this job for a while."""
    return record["kind"] == "poison" and POISON_FAULT in evidence.injected


def check_partial_faults(evidence, jobs, rows, findings):
    """A fault that concerns some jobs neither stops the others nor costs anything."""
    findings.add("no verdict on other jobs for as long as a fault lasted", (p.kind for p in evidence.partial if not p.verdicts))
    paused = (f"{partial.kind}: {reason}" for partial in evidence.partial for reason in partial.pauses)
    findings.add("intake paused by a fault that concerned some jobs only", paused)
    counted = (
        f"{job}: {row['attempts']} attempts, {row['reason']}"
        for job, answers in rows.items()
        for row in answers
        if job in jobs and jobs[job]["kind"] == "far" and row["attempts"] != 1
    )
    findings.add("attempts counted against jobs whose store was down", counted)
    findings.add("more sessions of the ledger than workers may have", evidence.sessions)


def check_quarantine(evidence, findings):
    """A record of the quarantine ends with its job, and only a process that died leaves suspects behind.

    The record is removed after the job is settled. A worker that dies between the two leaves a record of an answered job,
    and so does one that ends while the ledger is away. Such a record does no harm, but there must be few of them.
    """
    answered = set(evidence.suspects) & {row["id"] for row in evidence.verdicts}
    allowed = RECORDS_PER_DEATH * evidence.deaths + RECORDS_PER_OUTAGE * evidence.ledger_faults
    left = set(evidence.suspects) - answered if len(answered) <= allowed else set(evidence.suspects)
    # The id of a job that names neither id nor version covers what the store returned. If that changes between two
    # deliveries, no delivery asks for the record of the first one again, and it goes by age.
    changing = sum(has_two_versions(record, evidence) for record in evidence.tried.values())
    if len(left - answered) <= changing:
        left &= answered
    findings.add("records of the quarantine that were left behind", left)
    # A process that lost the broker or the ledger may leave a record behind too.
    harmless = all(kind == "worker-restart" or kind.startswith("store-") for kind in evidence.injected)
    images = sum(record["kind"] == "deadly" for record in evidence.tried.values())
    if evidence.deaths_by_image > DEATHS_OF_IMAGE * images:
        findings.append(f"workers died of {images} images {evidence.deaths_by_image} times")
    if harmless and evidence.injected:
        findings.add("jobs screened alone although no worker died", evidence.begun_alone)


def check_queues(evidence, rows, findings):
    findings.add("messages left in queues", (f"{count} in {queue}" for queue, count in evidence.queues.items() if count))
    kinds = [kind_of_dead(entry, evidence, rows) for entry in evidence.dead]
    findings.add("unexplained dead letters", (e for e, kind in zip(evidence.dead, kinds) if kind is None))
    failed = {job for job, answers in rows.items() if any(row["outcome"] == "failed" for row in answers)}
    conflicts = {job for job in evidence.confirmed if evidence.tried[job]["kind"] == "conflict"}
    refused = {f"conflict:{key}" for _, key, reason in evidence.dead if reason.startswith("id_conflict")}
    findings.add("jobs with the id of another job that were not dead-lettered", conflicts - refused)
    findings.add("failed jobs that were not dead-lettered", failed - {job for job, _, _ in evidence.dead})
    malformed = {job for job in evidence.confirmed if evidence.tried[job]["kind"] == "malformed"}
    # Their ids are not in the messages, so they can only be counted.
    if (missing := len(malformed) - kinds.count("malformed")) > 0:
        findings.append(f"malformed messages that were not dead-lettered: {missing}")


def kind_of_dead(entry, evidence, rows):
    """Why a message was dead-lettered, or None if it should not have been."""
    job, key, reason = entry
    if job is None and key is None:
        return "malformed"
    if job is None:
        # A job without an id is dead-lettered only if it found its object in another state than the row of its id is on.
        had_two_states = f"key:{key}" in rows and key in evidence.false_responses
        return "other state" if had_two_states and OTHER_STATE in reason else None
    if reason.startswith("id_conflict"):
        return "conflict" if f"conflict:{key}" in evidence.tried else None
    has_failed = {row["outcome"] for row in rows.get(job, [])} | {change.before for change in evidence.audit if change.job_id == job}
    return "failed" if "failed" in has_failed else None


def check_growth(before, after, findings):
    if before is None or after is None:
        return
    for what, limit in GROWTH.items():
        early, late = getattr(before, what), getattr(after, what)
        if late > early + limit:
            findings.append(f"{what.replace('_', ' ')} grew from {early} to {late}")
