-- What is sent to webhooks: one row for each event and each endpoint that takes it, written with its verdict. A row is
-- waiting until `delivered_at` or `given_up_at` is set.
CREATE TABLE webhook_deliveries (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint     text NOT NULL,                   -- the name of one of the configured [[webhooks]]
    event_id     uuid NOT NULL,                   -- as in the outbox
    verdict_id   uuid NOT NULL,
    routing_key  text NOT NULL,
    payload      text NOT NULL,                   -- the bytes that are sent and signed; jsonb would write them in another form
    created_at   timestamptz NOT NULL DEFAULT now(),
    waiting_since timestamptz NOT NULL DEFAULT now(), -- since it was written or replayed
    due_at       timestamptz NOT NULL DEFAULT now(), -- when a sender may take it; moved ahead as a lease
    attempts     integer NOT NULL DEFAULT 0,
    last_status  integer,                         -- of the last response; null without a response
    last_error   text,
    delivered_at timestamptz,
    given_up_at  timestamptz
);

-- By verdict: `erase`, `prune`, and a revision that makes an earlier event wrong.
CREATE UNIQUE INDEX webhook_deliveries_by_verdict ON webhook_deliveries (verdict_id, event_id, endpoint);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint, due_at)
    WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX webhook_deliveries_delivered ON webhook_deliveries (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE INDEX webhook_deliveries_given_up ON webhook_deliveries (endpoint, id) WHERE given_up_at IS NOT NULL;
