-- For whoever asks after the fact: of one image, and in the order of time.
CREATE INDEX verdicts_by_image ON verdicts (bucket, key);
CREATE INDEX verdicts_by_time ON verdicts (decided_at, id);
CREATE INDEX outbox_by_verdict ON outbox (verdict_id);
