-- Order by key: messages of one ordering_key are first delivered in the order of their seq.
--
-- What has a key is found by lane, a hash of the key: a relay locks lanes, and then reads their rows in order. What waits behind
-- a message that could not be delivered is parked in a table of its own, so that no claim meets it twice.

-- Both for rows with a key only: what has none is in neither, and pays nothing. IF NOT EXISTS: where the table is large, they may
-- be made first, CONCURRENTLY.
CREATE INDEX IF NOT EXISTS messages_lane_seq
    ON outbox.messages (((hashtextextended(ordering_key COLLATE "C", 0) & 255)::integer), seq)
    WHERE ordering_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS messages_ordered_seq ON outbox.messages (seq) WHERE ordering_key IS NOT NULL;

-- Of these as well.
CREATE INDEX IF NOT EXISTS deferred_ordering_key_seq ON outbox.deferred (ordering_key COLLATE "C", seq) WHERE ordering_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS dead_letters_ordering_key_seq ON outbox.dead_letters (ordering_key COLLATE "C", seq) WHERE ordering_key IS NOT NULL;

DO $$
DECLARE
    invalid text := (
        SELECT string_agg(i.indexrelid::regclass::text, ', ') FROM pg_index AS i
        WHERE i.indrelid IN ('outbox.messages'::regclass, 'outbox.deferred'::regclass, 'outbox.dead_letters'::regclass)
          AND NOT i.indisvalid
    );
BEGIN
    IF invalid IS NOT NULL THEN
        RAISE EXCEPTION 'an index was not built to the end: %', invalid USING HINT = 'Drop it, and migrate again.';
    END IF;
END
$$;

-- Was checked when it came in, like what is given up: nothing may keep one from being put aside.
CREATE TABLE outbox.parked (
    LIKE outbox.messages INCLUDING STORAGE INCLUDING COMMENTS,
    parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT parked_pkey PRIMARY KEY (seq)
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

CREATE INDEX parked_ordering_key_seq ON outbox.parked (ordering_key COLLATE "C", seq);

COMMENT ON TABLE outbox.parked IS
    'Messages that wait for an earlier one of their ordering key. Written by the relay only.';
COMMENT ON COLUMN outbox.parked.seq IS 'The place in the outbox, from the sequence of outbox.messages.';
COMMENT ON COLUMN outbox.parked.parked_at IS 'When a relay met it behind the head of its key.';

-- One row for each key that is blocked. Small and often changed: room for changes in place.
CREATE TABLE outbox.blocked_keys (
    ordering_key text COLLATE "C" NOT NULL,
    head_seq bigint,
    parked bigint NOT NULL DEFAULT 0,
    resume_from bigint NOT NULL DEFAULT -9223372036854775808,
    blocked_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT blocked_keys_pkey PRIMARY KEY (ordering_key)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

-- Those that nothing holds back any more.
CREATE INDEX blocked_keys_resuming ON outbox.blocked_keys (ordering_key) WHERE head_seq IS NULL;

COMMENT ON TABLE outbox.blocked_keys IS
    'Ordering keys whose messages are not sent as they come, because an earlier one waits or was given up, or what was parked behind it is not out yet.';
COMMENT ON COLUMN outbox.blocked_keys.head_seq IS
    'The message, in outbox.deferred or outbox.dead_letters, that the others wait for; null once it is gone, and what is parked goes out.';
COMMENT ON COLUMN outbox.blocked_keys.parked IS 'How many messages of the key are in outbox.parked, as the relays counted.';
COMMENT ON COLUMN outbox.blocked_keys.resume_from IS 'No parked message of the key is below.';
COMMENT ON COLUMN outbox.blocked_keys.blocked_at IS 'Since when the key is blocked.';

ALTER TABLE outbox.dead_letters ADD COLUMN blocks boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN outbox.dead_letters.blocks IS 'Whether the later messages of its ordering key wait until it is retried or discarded.';

-- A key that may have many dead letters that do not block it is asked for one that does whenever its head leaves.
CREATE INDEX dead_letters_blocking ON outbox.dead_letters (ordering_key COLLATE "C", seq) WHERE blocks;

-- What blocks a key and what frees it, whoever does it: a relay, an operator's command, retention, or a DELETE by hand. Nobody deletes
-- from blocked_keys here. A relay does, when nothing is parked, under the lock of the key's lane: without that, one that is just parking
-- a message would park it behind nothing.
--
-- Of the deferred messages of one key (several dead letters were retried) only the first has its turn. The others are due
-- in the year 9999, and at once when they are the first: they are no lag, and no look at what is due meets them.
-- A session that made its plans when the tables were empty would read them from end to end for each row: hence enable_seqscan.
CREATE FUNCTION outbox.head_came() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    not_yet CONSTANT timestamptz := '9999-12-31 00:00:00+00';
    head bigint;
BEGIN
    INSERT INTO outbox.blocked_keys AS b (ordering_key, head_seq, resume_from) VALUES (NEW.ordering_key, NEW.seq, NEW.seq)
    ON CONFLICT (ordering_key) DO UPDATE SET head_seq = least(b.head_seq, EXCLUDED.head_seq)
    RETURNING b.head_seq INTO head;
    IF head < NEW.seq THEN
        NEW.due_at := not_yet;
        RETURN NEW;
    END IF;
    -- The one that was the first until now. Where a relay is publishing it, its settle does this.
    UPDATE outbox.deferred SET due_at = not_yet WHERE due_at < not_yet AND seq = (
        SELECT d.seq FROM outbox.deferred AS d WHERE d.ordering_key COLLATE "C" = NEW.ordering_key AND d.seq > NEW.seq
        ORDER BY d.seq LIMIT 1 FOR UPDATE SKIP LOCKED
    );
    RETURN NEW;
END
$$;

CREATE FUNCTION outbox.head_waits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    PERFORM FROM outbox.blocked_keys WHERE ordering_key = NEW.ordering_key AND head_seq < NEW.seq FOR UPDATE;
    IF FOUND THEN
        NEW.due_at := '9999-12-31 00:00:00+00';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION outbox.head_died() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO outbox.blocked_keys AS b (ordering_key, head_seq, resume_from) VALUES (NEW.ordering_key, NEW.seq, NEW.seq)
    ON CONFLICT (ordering_key) DO UPDATE SET head_seq = least(b.head_seq, EXCLUDED.head_seq);
    RETURN NULL;
END
$$;

CREATE FUNCTION outbox.head_went() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
DECLARE
    head bigint;
BEGIN
    -- Locked first, and looked for then: by one statement, the next head could be one that its snapshot does not show.
    PERFORM FROM outbox.blocked_keys WHERE ordering_key = OLD.ordering_key AND head_seq = OLD.seq FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE outbox.blocked_keys SET head_seq = least(
        (SELECT d.seq FROM outbox.deferred AS d
         WHERE d.ordering_key COLLATE "C" = OLD.ordering_key ORDER BY d.seq LIMIT 1),
        (SELECT d.seq FROM outbox.dead_letters AS d
         WHERE d.ordering_key COLLATE "C" = OLD.ordering_key AND d.blocks ORDER BY d.seq LIMIT 1)
    )
    WHERE ordering_key = OLD.ordering_key RETURNING head_seq INTO head;
    -- Whoever has it locked is about to publish it, or to make it due.
    UPDATE outbox.deferred SET due_at = clock_timestamp() WHERE seq = (
        SELECT d.seq FROM outbox.deferred AS d WHERE d.seq = head AND d.due_at = '9999-12-31 00:00:00+00' FOR UPDATE SKIP LOCKED
    );
    RETURN NULL;
END
$$;

CREATE FUNCTION outbox.heads_went() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
AS $$
BEGIN
    UPDATE outbox.blocked_keys AS b SET head_seq = least(
        (SELECT d.seq FROM outbox.deferred AS d
         WHERE d.ordering_key COLLATE "C" = b.ordering_key ORDER BY d.seq LIMIT 1),
        (SELECT d.seq FROM outbox.dead_letters AS d
         WHERE d.ordering_key COLLATE "C" = b.ordering_key AND d.blocks ORDER BY d.seq LIMIT 1)
    );
    UPDATE outbox.deferred AS d SET due_at = clock_timestamp() FROM outbox.blocked_keys AS b
    WHERE d.seq = b.head_seq AND d.due_at = '9999-12-31 00:00:00+00';
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION outbox.head_came(), outbox.head_waits(), outbox.head_died(), outbox.head_went(), outbox.heads_went() FROM PUBLIC;

COMMENT ON FUNCTION outbox.head_came() IS 'Blocks the ordering key of a message that is deferred.';
COMMENT ON FUNCTION outbox.head_waits() IS 'Keeps a deferred message from being due before the earlier ones of its ordering key.';
COMMENT ON FUNCTION outbox.head_died() IS 'Blocks the ordering key of a dead letter that is to block it.';
COMMENT ON FUNCTION outbox.head_went() IS 'Has the messages behind it go out when the message that blocked their key is gone.';
COMMENT ON FUNCTION outbox.heads_went() IS 'The same for all that a TRUNCATE has taken.';

CREATE TRIGGER head_came BEFORE INSERT ON outbox.deferred
    FOR EACH ROW WHEN (NEW.ordering_key IS NOT NULL) EXECUTE FUNCTION outbox.head_came();
CREATE TRIGGER head_waits BEFORE UPDATE OF due_at ON outbox.deferred
    FOR EACH ROW WHEN (NEW.ordering_key IS NOT NULL) EXECUTE FUNCTION outbox.head_waits();
CREATE TRIGGER head_went AFTER DELETE ON outbox.deferred
    FOR EACH ROW WHEN (OLD.ordering_key IS NOT NULL) EXECUTE FUNCTION outbox.head_went();
CREATE TRIGGER heads_went AFTER TRUNCATE ON outbox.deferred
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.heads_went();
CREATE TRIGGER head_died AFTER INSERT ON outbox.dead_letters
    FOR EACH ROW WHEN (NEW.ordering_key IS NOT NULL AND NEW.blocks) EXECUTE FUNCTION outbox.head_died();
CREATE TRIGGER head_went AFTER DELETE ON outbox.dead_letters
    FOR EACH ROW WHEN (OLD.ordering_key IS NOT NULL) EXECUTE FUNCTION outbox.head_went();
CREATE TRIGGER heads_went AFTER TRUNCATE ON outbox.dead_letters
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.heads_went();

COMMENT ON COLUMN outbox.messages.ordering_key IS
    'Messages of one key are first delivered in the order of their seq. At most 255 bytes; null for a message without order.';
COMMENT ON COLUMN outbox.messages.supersede IS
    'Whether this message may be left out when the next one of its key goes to the same exchange and routing key, is marked so too, and is delivered.';
COMMENT ON COLUMN outbox.deferred.ordering_key IS 'A message here that has a key blocks the later ones of it.';

-- As before, with what a key asks for.
CREATE OR REPLACE FUNCTION outbox.is_publishable(
    exchange text, routing_key text, payload bytea, payload_json json, content_type text, headers jsonb, ordering_key text, type text,
    content_encoding text, correlation_id text, reply_to text, app_id text, priority integer, expiration bigint, supersede boolean
) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    -- The first that is broken. What is null breaks none.
    broken text := CASE
        WHEN (payload IS NULL) = (payload_json IS NULL) THEN 'payload_or_payload_json_exactly_one'
        WHEN octet_length(exchange) > 255 THEN 'exchange_at_most_255_bytes'
        WHEN octet_length(routing_key) > 255 THEN 'routing_key_at_most_255_bytes'
        WHEN octet_length(content_type) > 255 THEN 'content_type_at_most_255_bytes'
        WHEN octet_length(type) > 255 THEN 'type_at_most_255_bytes'
        WHEN octet_length(content_encoding) > 255 THEN 'content_encoding_at_most_255_bytes'
        WHEN octet_length(correlation_id) > 255 THEN 'correlation_id_at_most_255_bytes'
        WHEN octet_length(reply_to) > 255 THEN 'reply_to_at_most_255_bytes'
        WHEN octet_length(app_id) > 255 THEN 'app_id_at_most_255_bytes'
        WHEN priority NOT BETWEEN 0 AND 255 THEN 'priority_within_0_to_255'
        WHEN expiration NOT BETWEEN 0 AND 315360000000 THEN 'expiration_within_0_to_315360000000_ms'
        -- A queue that honours priorities would overtake within a key.
        WHEN priority IS NOT NULL AND ordering_key IS NOT NULL THEN 'priority_or_ordering_key_not_both'
        -- A key given by mistake would put everything in one line.
        WHEN ordering_key = '' THEN 'ordering_key_is_not_empty'
        WHEN octet_length(ordering_key) > 255 THEN 'ordering_key_at_most_255_bytes'
        WHEN supersede AND ordering_key IS NULL THEN 'supersede_needs_ordering_key'
        -- The broker takes this name for the publisher's own consumer, which the relay does not have.
        WHEN reply_to = 'amq.rabbitmq.reply-to' THEN 'reply_to_is_not_direct_reply_to'
        -- The default exchange does not route these, it decodes them: the broker ends the connection over
        -- one it cannot decode (541), and reports the others as unroutable even when it delivers them.
        WHEN exchange = '' AND starts_with(routing_key, 'amq.rabbitmq.reply-to.') THEN 'default_exchange_is_not_for_direct_reply_to'
        -- Stream queues decode these while they take a message, and fail over what they cannot decode: the
        -- broker ends the connection (541, rabbit_stream_queue), with everybody's messages.
        WHEN type = 'amqp-1.0' THEN 'type_is_not_amqp_1_0'
        -- All that follows is about headers.
        WHEN headers = '{}' THEN NULL
        WHEN jsonb_typeof(headers) <> 'object' THEN 'headers_is_json_object'
        WHEN headers OPERATOR(pg_catalog.?|) '{x-amqp-1.0-properties,x-amqp-1.0-app-properties,x-amqp-1.0-message-annotations,x-amqp-1.0-footer}'
            THEN 'headers_are_not_those_of_amqp_1_0'
        WHEN headers OPERATOR(pg_catalog.?) 'x-stream-filter-value'
            AND (jsonb_typeof(headers -> 'x-stream-filter-value') <> 'string' OR octet_length(headers ->> 'x-stream-filter-value') > 255)
            THEN 'headers_stream_filter_value_is_string_of_at_most_255_bytes'
        WHEN headers OPERATOR(pg_catalog.?|) '{CC,BCC}'
            AND jsonb_path_exists(headers, 'strict $.keyvalue() ? (@.key == "CC" || @.key == "BCC").value ? (@.type() != "array" || exists (@[*] ? (@.type() != "string")))')
            THEN 'headers_cc_and_bcc_are_arrays_of_strings'
        WHEN exchange = '' AND headers OPERATOR(pg_catalog.?|) '{CC,BCC}'
            AND jsonb_path_exists(headers, 'lax $.keyvalue() ? (@.key == "CC" || @.key == "BCC").value[*] ? (@ starts with "amq.rabbitmq.reply-to.")')
            THEN 'default_exchange_is_not_for_direct_reply_to'
        -- Those that look at every value are left out where the text is too short to break them.
        WHEN octet_length(headers::text) < 128 THEN NULL
        WHEN octet_length(headers::text) > 65536 THEN 'headers_at_most_64_kib'
        WHEN jsonb_path_exists(headers, 'strict $.**{65 to last}') THEN 'headers_nested_at_most_64_deep'
        WHEN octet_length(headers::text) < 256 THEN NULL
        WHEN NOT outbox.header_names_are_at_most_255_bytes(headers) THEN 'headers_names_at_most_255_bytes'
        WHEN octet_length(headers::text) < 309 THEN NULL
        -- A little below the largest double, whose decimal digits not every reader rounds down.
        WHEN jsonb_path_exists(headers, 'strict $.** ? (@.type() == "number") ? (@ > 1.797e308 || @ < -1.797e308)') THEN 'headers_numbers_fit_a_double'
    END;
BEGIN
    IF broken IS NULL THEN
        RETURN true;
    END IF;
    -- As the server says it of a CHECK, so that the rule is named wherever a client looks. But without the failing
    -- row, which would put a payload into the log.
    RAISE EXCEPTION USING
        ERRCODE = 'check_violation',
        MESSAGE = 'the message violates check constraint "' || broken || '"',
        CONSTRAINT = broken;
END
$$;

-- As before, with ordering_key and supersede.
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
    -- Until it is due, it would hold back every later message of its key.
    IF ordering_key IS NOT NULL AND deliver_at IS NOT NULL THEN
        RAISE EXCEPTION 'deliver_at and ordering_key are both given: a message with a key goes when its turn comes'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave one of them out. A message that is to be ordered and late is best inserted late.';
    END IF;
    supersede := coalesce(supersede, false);
    IF supersede AND ordering_key IS NULL THEN
        RAISE EXCEPTION 'supersede is given without ordering_key: only a message of the same key can be superseded'
            USING ERRCODE = 'invalid_parameter_value';
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
            (id, exchange, routing_key, payload, payload_json, content_type, headers, ordering_key, type,
             content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede)
        VALUES
            (id, exchange, routing_key, payload, payload_json, content_type, coalesce(headers, '{}'), ordering_key, type,
             content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
    END IF;
    RETURN id;
END
$$;
