-- What cannot go now: messages that wait for a time, and messages that were given up.
--
-- A message is in one of the three tables, never in two: it moves in one transaction, and keeps its seq, id
-- and created_at. Nothing goes back into outbox.messages, which is read by seq.

-- The same columns and the same rules: scheduled messages arrive here without having been in outbox.messages.
CREATE TABLE outbox.deferred (
    LIKE outbox.messages INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMMENTS,
    attempts integer NOT NULL,
    due_at timestamptz NOT NULL,
    cause text NOT NULL,
    reason text,
    error text,
    deferred_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT deferred_pkey PRIMARY KEY (seq),
    CONSTRAINT attempts_not_negative CHECK (attempts >= 0),
    CONSTRAINT due_at_is_finite CHECK (isfinite(due_at)),
    CONSTRAINT cause_is_retry_or_scheduled CHECK (cause IN ('retry', 'scheduled'))
) WITH (
    -- A queue as outbox.messages is: the same settings, for the same reasons.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0,
    toast.vacuum_truncate = off
);

-- Claims, and the next due time.
CREATE INDEX deferred_due_at_seq ON outbox.deferred (due_at, seq);
-- The count for each cause.
CREATE INDEX deferred_cause_seq ON outbox.deferred (cause, seq);
CREATE INDEX deferred_id ON outbox.deferred (id);
-- What failed to one exchange or route, to probe it and to let its messages go: among any number of others, and of
-- scheduled ones, for which producers pay nothing here. Two names of at most 255 bytes fit an entry. Collation "C":
-- the order is of no meaning, comparing bytes is cheapest, and an upgrade of the system's locales cannot break it.
CREATE INDEX deferred_target_due_at ON outbox.deferred (exchange COLLATE "C", routing_key COLLATE "C", due_at)
    WHERE cause = 'retry';

COMMENT ON TABLE outbox.deferred IS
    'Messages that wait for a time: published with deliver_at, or to be tried again after a failure. Written by outbox.publish and by the relay only.';
COMMENT ON COLUMN outbox.deferred.seq IS 'The place in the outbox, from the sequence of outbox.messages. Not part of the message.';
COMMENT ON COLUMN outbox.deferred.attempts IS 'How many publishes failed by the fault of the message itself.';
COMMENT ON COLUMN outbox.deferred.due_at IS 'When it may be published, by the clock of the database.';
COMMENT ON COLUMN outbox.deferred.cause IS 'retry: a publish failed. scheduled: the producer gave deliver_at.';
COMMENT ON COLUMN outbox.deferred.reason IS 'Why the last publish failed; null before the first.';
COMMENT ON COLUMN outbox.deferred.error IS 'What was said about it; null before the first.';
COMMENT ON COLUMN outbox.deferred.deferred_at IS 'When it was deferred, the last time.';

-- Given up rows were checked when they came in: nothing may keep one from being put aside.
CREATE TABLE outbox.dead_letters (
    LIKE outbox.messages INCLUDING STORAGE INCLUDING COMMENTS,
    attempts integer NOT NULL,
    reason text NOT NULL,
    error text NOT NULL,
    given_up_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT dead_letters_pkey PRIMARY KEY (seq)
);

-- Retention.
CREATE INDEX dead_letters_given_up_at_seq ON outbox.dead_letters (given_up_at, seq);
-- What people select by.
CREATE INDEX dead_letters_exchange_seq ON outbox.dead_letters (exchange, seq);
CREATE INDEX dead_letters_reason_seq ON outbox.dead_letters (reason, seq);
CREATE INDEX dead_letters_id ON outbox.dead_letters (id);

COMMENT ON TABLE outbox.dead_letters IS
    'Messages that were given up after the last attempt or a permanent fault, with all it takes to send them again. A person decides: retry or discard.';
COMMENT ON COLUMN outbox.dead_letters.seq IS 'The place in the outbox, from the sequence of outbox.messages. Not part of the message.';
COMMENT ON COLUMN outbox.dead_letters.attempts IS 'How many publishes failed by the fault of the message itself.';
COMMENT ON COLUMN outbox.dead_letters.reason IS 'Why the last publish failed.';
COMMENT ON COLUMN outbox.dead_letters.error IS 'What was said about it.';
COMMENT ON COLUMN outbox.dead_letters.given_up_at IS 'When it was given up, by the clock of the database.';

CREATE FUNCTION outbox.deferred_inserted() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    -- As for outbox.messages: what others can see must be durable. Nobody is woken: relays look
    -- for what is due by themselves.
    IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.deferred_inserted() IS 'Makes the commit durable.';

CREATE TRIGGER deferred_inserted
    AFTER INSERT ON outbox.deferred
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.deferred_inserted();

-- As before, and deliver_at: a message for later waits in outbox.deferred.
CREATE OR REPLACE FUNCTION outbox.enqueue(
    exchange text, routing_key text, payload bytea, payload_json json, headers jsonb, ordering_key text,
    type text, deliver_at timestamptz, id uuid, content_type text, content_encoding text,
    correlation_id text, reply_to text, app_id text, priority integer, expiration bigint, supersede boolean
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF exchange IS NULL THEN
        RAISE EXCEPTION 'exchange is null: name an exchange, or give the empty string for the default exchange'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF routing_key IS NULL THEN
        RAISE EXCEPTION 'routing_key is null: give one, or the empty string'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF payload IS NULL AND payload_json IS NULL THEN
        RAISE EXCEPTION 'payload is null: a message without a body has an empty payload'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF ordering_key IS NOT NULL THEN
        RAISE EXCEPTION 'ordering_key is not supported by this version of Postrider'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF supersede THEN
        RAISE EXCEPTION 'supersede is not supported by this version of Postrider'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    id := coalesce(id, gen_random_uuid());
    IF deliver_at > clock_timestamp() THEN
        -- One sequence for both tables: a message keeps its seq wherever it goes. The clock is asked again
        -- under the lock of the INSERT: no row may appear that was due before its writer could be seen.
        INSERT INTO outbox.deferred
            (seq, id, exchange, routing_key, payload, payload_json, content_type, headers, type,
             content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede, created_at,
             attempts, due_at, cause)
        VALUES
            (nextval(pg_get_serial_sequence('outbox.messages', 'seq')), id, exchange, routing_key, payload, payload_json,
             content_type, coalesce(headers, '{}'), type, content_encoding, correlation_id, reply_to, app_id, priority,
             expiration, false, clock_timestamp(), 0, greatest(deliver_at, clock_timestamp()), 'scheduled');
    ELSE
        INSERT INTO outbox.messages
            (id, exchange, routing_key, payload, payload_json, content_type, headers, type,
             content_encoding, correlation_id, reply_to, app_id, priority, expiration)
        VALUES
            (id, exchange, routing_key, payload, payload_json, content_type, coalesce(headers, '{}'), type,
             content_encoding, correlation_id, reply_to, app_id, priority, expiration);
    END IF;
    RETURN id;
END
$$;
