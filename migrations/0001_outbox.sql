-- The outbox: the table applications insert into in their own transactions, and what watches it.
--
-- What the broker would refuse, the INSERT refuses, with a constraint whose name is the rule: the
-- application hears of it in its own transaction, and no row can stop the relay.

DO $$
BEGIN
    IF current_setting('server_version_num')::integer < 140000 THEN
        RAISE EXCEPTION 'the outbox needs PostgreSQL 14 or newer, this is %', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the outbox needs a database with ENCODING UTF8, this one has %', current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;

-- AMQP carries names in headers, at every depth, as short strings. Only called for headers whose text
-- is long enough to hold a name that is too long.
CREATE FUNCTION outbox.header_names_are_at_most_255_bytes(headers jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (
        SELECT FROM jsonb_path_query(headers, 'strict $.** ? (@.type() == "object")') AS o (object),
                    jsonb_object_keys(o.object) AS k (name)
        WHERE octet_length(k.name) > 255
    )
$$;

COMMENT ON FUNCTION outbox.header_names_are_at_most_255_bytes(jsonb) IS
    'Whether every name in these headers, at every depth, fits an AMQP short string. Used by a constraint of outbox.messages.';

CREATE TABLE outbox.messages (
    seq bigint GENERATED ALWAYS AS IDENTITY (CACHE 1),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    exchange text NOT NULL,
    routing_key text NOT NULL,
    payload bytea,
    payload_json json,
    content_type text DEFAULT 'application/json',
    headers jsonb NOT NULL DEFAULT '{}',
    ordering_key text,
    type text,
    content_encoding text,
    correlation_id text,
    reply_to text,
    app_id text,
    priority integer,
    expiration bigint,
    supersede boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),

    CONSTRAINT messages_pkey PRIMARY KEY (seq),
    CONSTRAINT payload_or_payload_json_exactly_one CHECK ((payload IS NULL) <> (payload_json IS NULL)),
    CONSTRAINT exchange_at_most_255_bytes CHECK (octet_length(exchange) <= 255),
    CONSTRAINT routing_key_at_most_255_bytes CHECK (octet_length(routing_key) <= 255),
    CONSTRAINT content_type_at_most_255_bytes CHECK (octet_length(content_type) <= 255),
    CONSTRAINT type_at_most_255_bytes CHECK (octet_length(type) <= 255),
    CONSTRAINT content_encoding_at_most_255_bytes CHECK (octet_length(content_encoding) <= 255),
    CONSTRAINT correlation_id_at_most_255_bytes CHECK (octet_length(correlation_id) <= 255),
    CONSTRAINT reply_to_at_most_255_bytes CHECK (octet_length(reply_to) <= 255),
    -- The broker takes this name for the publisher's own consumer, which the relay does not have.
    CONSTRAINT reply_to_is_not_direct_reply_to CHECK (reply_to <> 'amq.rabbitmq.reply-to'),
    -- The default exchange does not route these, it decodes them: the broker ends the connection over
    -- one it cannot decode (541), and reports the others as unroutable even when it delivers them.
    CONSTRAINT default_exchange_is_not_for_direct_reply_to CHECK (
        exchange <> ''
        OR NOT starts_with(routing_key, 'amq.rabbitmq.reply-to.')
        AND (
            headers = '{}'
            OR jsonb_typeof(headers) <> 'object'
            OR NOT jsonb_path_exists(headers, 'lax $.keyvalue() ? (@.key == "CC" || @.key == "BCC").value[*] ? (@ starts with "amq.rabbitmq.reply-to.")')
        )
    ),
    CONSTRAINT app_id_at_most_255_bytes CHECK (octet_length(app_id) <= 255),
    CONSTRAINT priority_within_0_to_255 CHECK (priority BETWEEN 0 AND 255),
    CONSTRAINT expiration_within_0_to_315360000000_ms CHECK (expiration BETWEEN 0 AND 315360000000),
    -- A queue that honours priorities would overtake within a key.
    CONSTRAINT priority_or_ordering_key_not_both CHECK (priority IS NULL OR ordering_key IS NULL),
    CONSTRAINT ordering_key_is_not_supported_by_this_version CHECK (ordering_key IS NULL),
    CONSTRAINT supersede_is_not_supported_by_this_version CHECK (NOT supersede),
    -- Stream queues decode these while they take a message, and fail over what they cannot decode: the
    -- broker ends the connection (541, rabbit_stream_queue), with everybody's messages.
    CONSTRAINT type_is_not_amqp_1_0 CHECK (type <> 'amqp-1.0'),
    CONSTRAINT headers_are_not_those_of_amqp_1_0 CHECK (
        headers = '{}'
        OR NOT headers OPERATOR(pg_catalog.?|) '{x-amqp-1.0-properties,x-amqp-1.0-app-properties,x-amqp-1.0-message-annotations,x-amqp-1.0-footer}'
    ),
    CONSTRAINT headers_stream_filter_value_is_string_of_at_most_255_bytes CHECK (
        headers = '{}'
        OR NOT headers OPERATOR(pg_catalog.?) 'x-stream-filter-value'
        OR jsonb_typeof(headers -> 'x-stream-filter-value') IS NOT DISTINCT FROM 'string'
            AND octet_length(headers ->> 'x-stream-filter-value') <= 255
        OR jsonb_typeof(headers) <> 'object'
    ),
    CONSTRAINT headers_is_json_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT headers_at_most_64_kib CHECK (headers = '{}' OR octet_length(headers::text) <= 65536),
    CONSTRAINT headers_cc_and_bcc_are_arrays_of_strings CHECK (
        headers = '{}'
        OR jsonb_typeof(headers) <> 'object'
        OR NOT headers OPERATOR(pg_catalog.?|) '{CC,BCC}'
        OR NOT jsonb_path_exists(headers, 'strict $.keyvalue() ? (@.key == "CC" || @.key == "BCC").value ? (@.type() != "array" || exists (@[*] ? (@.type() != "string")))')
    ),
    -- The three that look at every value are left out where the text is too short to break them.
    CONSTRAINT headers_nested_at_most_64_deep CHECK (
        octet_length(headers::text) < 128
        OR NOT jsonb_path_exists(headers, 'strict $.**{65 to last}')
    ),
    -- A little below the largest double, whose decimal digits not every reader rounds down.
    CONSTRAINT headers_numbers_fit_a_double CHECK (
        octet_length(headers::text) < 309
        OR NOT jsonb_path_exists(headers, 'strict $.** ? (@.type() == "number") ? (@ > 1.797e308 || @ < -1.797e308)')
    ),
    CONSTRAINT headers_names_at_most_255_bytes CHECK (
        octet_length(headers::text) < 256
        OR outbox.header_names_are_at_most_255_bytes(headers)
    )
) WITH (
    -- A queue turns over completely: vacuum by what came and went, not by a share of the table, and
    -- keep up. Never truncate: it takes an exclusive lock on a table that empties all the time.
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

-- Uncompressed, a payload's size is known without reading it, and no CPU is spent on packing what is
-- read once.
ALTER TABLE outbox.messages
    ALTER COLUMN payload SET STORAGE EXTERNAL,
    ALTER COLUMN payload_json SET STORAGE EXTERNAL;

COMMENT ON TABLE outbox.messages IS
    'Messages to RabbitMQ that were not sent yet. Insert here in the transaction that changes your state; Postrider publishes the row after the commit and deletes it when the broker has confirmed it.';
COMMENT ON COLUMN outbox.messages.seq IS 'The place in the outbox; drawn by the database. Not part of the message.';
COMMENT ON COLUMN outbox.messages.id IS 'Sent as message-id; what consumers drop repeats by. Unique by convention: give your own or take the default.';
COMMENT ON COLUMN outbox.messages.exchange IS 'The exchange; the empty string is the default exchange of RabbitMQ, which routes to the queue named by the routing key.';
COMMENT ON COLUMN outbox.messages.routing_key IS 'The routing key.';
COMMENT ON COLUMN outbox.messages.payload IS 'The body as bytes. Either this or payload_json.';
COMMENT ON COLUMN outbox.messages.payload_json IS 'The body as JSON, sent as it was written. Either this or payload.';
COMMENT ON COLUMN outbox.messages.content_type IS 'Sent as content-type; not sent when null.';
COMMENT ON COLUMN outbox.messages.headers IS 'A JSON object, sent as the headers; values keep their types.';
COMMENT ON COLUMN outbox.messages.ordering_key IS 'Reserved: not supported by this version.';
COMMENT ON COLUMN outbox.messages.type IS 'Sent as type.';
COMMENT ON COLUMN outbox.messages.content_encoding IS 'Sent as content-encoding; the body is not touched.';
COMMENT ON COLUMN outbox.messages.correlation_id IS 'Sent as correlation-id.';
COMMENT ON COLUMN outbox.messages.reply_to IS 'Sent as reply-to: the name of a queue. Direct reply-to needs the publisher itself to consume, and is refused.';
COMMENT ON COLUMN outbox.messages.app_id IS 'Sent as app-id.';
COMMENT ON COLUMN outbox.messages.priority IS 'Sent as priority, 0 to 255.';
COMMENT ON COLUMN outbox.messages.expiration IS 'Sent as expiration: how long the message may wait in a queue, in milliseconds.';
COMMENT ON COLUMN outbox.messages.supersede IS 'Reserved: not supported by this version.';
COMMENT ON COLUMN outbox.messages.created_at IS 'When the row was inserted, by the clock of the database; sent as timestamp. Leave it to the default.';

-- Once for each INSERT statement, whatever its number of rows.
CREATE FUNCTION outbox.messages_inserted() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    -- With asynchronous commit others see a row before it is durable: it could be published, and be
    -- gone after a crash of the server. This holds for the rest of this transaction only.
    IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
    END IF;
    -- A transaction that has notified cannot be prepared for two-phase commit: one that will be says
    -- SET LOCAL postrider.notify = 'off', and its messages are found by the poll.
    IF pg_catalog.current_setting('postrider.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('postrider_outbox', '');
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.messages_inserted() IS
    'Wakes the relays at commit and makes the commit durable. SET LOCAL postrider.notify = ''off'' leaves the wake-up out.';

CREATE TRIGGER messages_inserted
    AFTER INSERT ON outbox.messages
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.messages_inserted();
