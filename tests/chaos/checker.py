"""The verdict on a run: what was promised, compared with what was written down by others than Pixwarden.

Everything in here is a function of the evidence, so that its tests can show it evidence of any mistake.
"""

from collections import defaultdict
from dataclasses import dataclass, field

LOST = "lost: confirmed jobs without an outcome"
DOUBLED = "doubled: jobs with several outcomes"
UNHEARD = "events missing, of verdicts that owe one"
UNPUBLISHED = "events still unpublished in the outbox"
OTHERWISE = "outcomes other than expected"

# How much more there may be after the run than when it was warm.
GROWTH = {"resident_mib": 50, "descriptors": 12, "broker_connections": 1, "ledger_connections": 16}


@dataclass
class Evidence:
    tried: dict = field(default_factory=dict)  # id → record, of every job that was published at least once
    confirmed: set = field(default_factory=set)  # ids whose publish was confirmed
    verdicts: list = field(default_factory=list)  # rows: id, job_id, key, outcome
    audit: list = field(default_factory=list)  # rows: job_id, before, after
    outbox: list = field(default_factory=list)  # rows: event id, whether published
    events: list = field(default_factory=list)  # as the listener wrote them down
    queues: dict = field(default_factory=dict)  # name → messages, ready or not
    dead: list = field(default_factory=list)  # (job id, key, reason)
    lies: dict = field(default_factory=dict)  # key → kinds of lies the store has told about it
    before: object = None  # monitor.Usage when it was warm
    after: object = None  # the same when it had healed
    unexpected: list = field(default_factory=list)  # ends of workers that nobody had killed


class Findings(list):
    """What is wrong, a line each."""

    def note(self, what, cases):
        """Adds a line if there are any cases."""
        cases = sorted(map(str, cases))
        if cases:
            self.append(f"{what}: {len(cases)}, such as {', '.join(cases[:5])}")


def check(evidence):
    """What is wrong; nothing if every promise was kept."""
    wrong = Findings()
    jobs = understood(evidence.tried)
    rows = defaultdict(list)
    for row in evidence.verdicts:
        rows[name(row, jobs)].append(row)
    check_outcomes(evidence, jobs, rows, wrong)
    check_events(evidence, wrong)
    check_queues(evidence, rows, wrong)
    check_growth(evidence.before, evidence.after, wrong)
    wrong.note("workers that ended although nobody had killed them", evidence.unexpected)
    return wrong


def check_outcomes(evidence, jobs, rows, wrong):
    wrong.note(LOST, {job for job in jobs if job in evidence.confirmed} - set(rows))
    wrong.note(DOUBLED, (job for job, answers in rows.items() if len(answers) > 1 and not restated(jobs.get(job), evidence)))
    wrong.note("outcomes without a job", set(rows) - set(jobs))
    may = {"deleted", "failed"}
    rewritten = (f"{job}: {old} to {new}" for job, old, new in evidence.audit if old != "failed" or new in may)
    wrong.note("verdicts rewritten after their commit", rewritten)
    wrong.note(
        OTHERWISE,
        (
            f"{job}: {row['outcome']} instead of {jobs[job]['outcome']}"
            for job, answers in rows.items()
            for row in answers
            if job in jobs and row["outcome"] not in allowed(jobs[job], evidence.lies)
        ),
    )


def restated(record, evidence):
    """Whether a job may have two verdicts: it named no id and no version, so that its id covers what the store said of
    the object, and the store has said two different things."""
    return record is not None and record["kind"] == "derived" and record["key"] in evidence.lies


def understood(tried):
    """The jobs that must have an outcome. One whose id is another's has none of its own."""
    return {job: record for job, record in tried.items() if record["kind"] not in ("malformed", "conflict")}


def name(row, jobs):
    """A verdict's job as the generator knows it: by its id, or by its key where the job named none."""
    by_key = f"key:{row['key']}"
    return by_key if by_key in jobs else row["job_id"]


def allowed(record, lies):
    """The outcomes a job may have; a store that denied an object made it `missing`, and rightly so."""
    outcomes = {record["outcome"]}
    if lies.get(record["key"], set()) & {"missing", "wrong-etag"}:
        outcomes.add("missing")
    return outcomes


def check_events(evidence, wrong):
    """Every verdict here owes an event, for all routing keys are sent."""
    outcomes = {row["id"]: row["outcome"] for row in evidence.verdicts}
    heard, bodies = defaultdict(set), defaultdict(set)
    for event in evidence.events:
        heard[event["verdict_id"]].add(event["id"])
        bodies[event["id"]].add(event["body"])
    told = {(event["verdict_id"], event["outcome"]) for event in evidence.events}
    wrong.note(UNHEARD, (verdict for verdict, outcome in outcomes.items() if (verdict, outcome) not in told))
    wrong.note("events without a verdict", set(heard) - set(outcomes))
    # A `failed` verdict may be replaced by a later delivery, and has an event for each outcome then.
    replaced = {job for job, before, _ in evidence.audit if before == "failed"}
    final = {row["id"] for row in evidence.verdicts if row["job_id"] not in replaced}
    several = (verdict for verdict, ids in heard.items() if len(ids) > 1 and verdict in final)
    wrong.note("verdicts with several event ids", several)
    wrong.note("duplicate events that differ in their body", (event for event, seen in bodies.items() if len(seen) > 1))
    last = [e for e in evidence.events if not (e["outcome"] == "failed" and e["job_id"] in replaced)]
    differ = {e["job_id"] for e in last if outcomes.get(e["verdict_id"], e["outcome"]) != e["outcome"]}
    wrong.note("events that tell another outcome than the verdict", differ)
    wrong.note(UNPUBLISHED, (id for id, published in evidence.outbox if not published))


def check_queues(evidence, rows, wrong):
    wrong.note("messages left behind", (f"{count} in {queue}" for queue, count in evidence.queues.items() if count))
    kinds = [kind_of_dead(entry, evidence, rows) for entry in evidence.dead]
    wrong.note("dead letters that nothing explains", (e for e, kind in zip(evidence.dead, kinds) if kind is None))
    failed = {job for job, answers in rows.items() if any(row["outcome"] == "failed" for row in answers)}
    conflicts = {job for job in evidence.confirmed if evidence.tried[job]["kind"] == "conflict"}
    refused = {f"conflict:{key}" for _, key, reason in evidence.dead if reason.startswith("id_conflict")}
    wrong.note("jobs with another's id that are not among the dead letters", conflicts - refused)
    wrong.note("failed jobs that are not among the dead letters", failed - {job for job, _, _ in evidence.dead})
    malformed = {job for job in evidence.confirmed if evidence.tried[job]["kind"] == "malformed"}
    # They look alike, so that they can only be counted.
    if (missing := len(malformed) - kinds.count("malformed")) > 0:
        wrong.append(f"malformed messages that are not among the dead letters: {missing}")


def kind_of_dead(entry, evidence, rows):
    """Why a message is among the dead letters, or None if it should not be."""
    job, key, reason = entry
    if job is None:
        # A job without an id that can be understood never gets here.
        return "malformed" if key is None else None
    if reason.startswith("id_conflict"):
        return "conflict" if f"conflict:{key}" in evidence.tried else None
    has_failed = {row["outcome"] for row in rows.get(job, [])} | {before for name, before, _ in evidence.audit if name == job}
    return "failed" if "failed" in has_failed else None


def check_growth(before, after, wrong):
    if before is None or after is None:
        return
    for what, limit in GROWTH.items():
        early, late = getattr(before, what), getattr(after, what)
        if late > early + limit:
            wrong.append(f"{what.replace('_', ' ')} grew from {early} to {late}")
