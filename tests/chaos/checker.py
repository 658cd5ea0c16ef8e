"""Checks a run: compares Pixwarden's promises with records that were made independently of it.

Every function depends only on the evidence, so that tests can pass evidence of any bug.
"""

from collections import defaultdict
from dataclasses import dataclass, field

LOST = "lost: confirmed jobs without an outcome"
DOUBLED = "doubled: jobs with several outcomes"
MISSING_EVENTS = "verdicts without their event"
UNPUBLISHED = "unpublished events in the outbox"
WRONG_OUTCOME = "unexpected outcomes"
FAILED = "jobs that failed because of an outage"

# A job without an id may meet the row of an earlier state of its object. This is in the reason of its dead letter.
OTHER_STATE = "another state of the object"
# The fault by which the rows of some jobs are refused.
POISON_FAULT = "ledger-poison-trigger"

# How often workers may die of one image: three times while it is screened alone (worker.deaths), once when it is delivered
# for the first time, once when it is delivered again, and as often when it comes back as a copy after a failed attempt.
DEATHS_OF_IMAGE = 10

# How many records of answered jobs a dying worker, and an outage of the ledger, may leave in the quarantine.
RECORDS_PER_DEATH = 2
RECORDS_PER_OUTAGE = 16

# How much each resource may grow from warm-up to the end of the run.
GROWTH = {"resident_mib": 50, "descriptors": 12, "broker_connections": 1, "ledger_connections": 16}


@dataclass
class Evidence:
    tried: dict = field(default_factory=dict)  # id → record, of every job that was published at least once
    confirmed: set = field(default_factory=set)  # ids whose publish was confirmed
    verdicts: list = field(default_factory=list)  # rows: id, job_id, key, outcome, reason, attempts, has_metadata
    audit: list = field(default_factory=list)  # rows: job_id, before, after
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
    may = {"deleted", "failed"}
    rewritten = (f"{job}: {old} to {new}" for job, old, new in evidence.audit if old != "failed" or new in may)
    findings.add("verdicts rewritten after their commit", rewritten)
    findings.add(
        WRONG_OUTCOME,
        (
            f"{job}: {row['outcome']} instead of {jobs[job]['outcome']}"
            for job, answers in rows.items()
            for row in answers
            if job in jobs and row["outcome"] not in allowed(jobs[job], evidence.false_responses) | {"failed"}
        ),
    )


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


def check_events(evidence, findings):
    """Every verdict must have an event, because all routing keys are published."""
    outcomes = {row["id"]: row["outcome"] for row in evidence.verdicts}
    received, bodies = defaultdict(set), defaultdict(set)
    for event in evidence.events:
        received[event["verdict_id"]].add(event["id"])
        bodies[event["id"]].add(event["body"])
    announced = {(event["verdict_id"], event["outcome"]) for event in evidence.events}
    findings.add(MISSING_EVENTS, (verdict for verdict, outcome in outcomes.items() if (verdict, outcome) not in announced))
    findings.add("events without a verdict", set(received) - set(outcomes))
    # A `failed` verdict may be replaced by a later delivery, and has an event for each outcome then.
    replaced = {job for job, before, _ in evidence.audit if before == "failed"}
    final = {row["id"] for row in evidence.verdicts if row["job_id"] not in replaced}
    several = (verdict for verdict, ids in received.items() if len(ids) > 1 and verdict in final)
    findings.add("verdicts with several event ids", several)
    findings.add("duplicate events that differ in their body", (event for event, seen in bodies.items() if len(seen) > 1))
    last = [e for e in evidence.events if not (e["outcome"] == "failed" and e["job_id"] in replaced)]
    differ = {e["job_id"] for e in last if outcomes.get(e["verdict_id"], e["outcome"]) != e["outcome"]}
    findings.add("events with another outcome than the verdict", differ)
    findings.add(UNPUBLISHED, (id for id, published in evidence.outbox if not published))


def check_failures(evidence, jobs, rows, findings):
    """No outage makes a job fail: an image that kills processes does, and a row that the ledger refuses."""
    may_fail = {job for job, record in jobs.items() if record["outcome"] == "failed" or is_refused(record, evidence)}
    now = (
        f"{job}: {row['reason']}" for job, answers in rows.items() for row in answers if row["outcome"] == "failed" and job not in may_fail
    )
    before = (f"{job}: failed at first, then {after}" for job, old, after in evidence.audit if old == "failed" and job not in may_fail)
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
    has_failed = {row["outcome"] for row in rows.get(job, [])} | {before for name, before, _ in evidence.audit if name == job}
    return "failed" if "failed" in has_failed else None


def check_growth(before, after, findings):
    if before is None or after is None:
        return
    for what, limit in GROWTH.items():
        early, late = getattr(before, what), getattr(after, what)
        if late > early + limit:
            findings.append(f"{what.replace('_', ' ')} grew from {early} to {late}")
