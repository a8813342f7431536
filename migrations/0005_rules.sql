-- The rules for messages become one CHECK that calls a function.
--
-- The server reads the text of every CHECK anew for each statement that inserts: for twenty-five of them, 25 kB, that was two thirds
-- of the CPU time of an insert. A function is read once for each session.

CREATE FUNCTION outbox.is_publishable(
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
        WHEN ordering_key IS NOT NULL THEN 'ordering_key_is_not_supported_by_this_version'
        WHEN supersede THEN 'supersede_is_not_supported_by_this_version'
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

COMMENT ON FUNCTION outbox.is_publishable(text, text, bytea, json, text, jsonb, text, text, text, text, text, text, integer, bigint, boolean) IS
    'Whether the broker would take such a message. Raises check_violation, with the broken rule as the name of the constraint, if not.';

-- Whoever may insert must be able to be told.
GRANT EXECUTE ON FUNCTION
    outbox.is_publishable(text, text, bytea, json, text, jsonb, text, text, text, text, text, text, integer, bigint, boolean),
    outbox.header_names_are_at_most_255_bytes(jsonb)
    TO PUBLIC;

-- Not validated here: it would hold an exclusive lock for as long as it takes to read the backlog, and what is there
-- obeyed the same rules when it came. The next file validates, which locks nobody out.
DO $$
DECLARE
    replaced text[] := ARRAY[
        'payload_or_payload_json_exactly_one', 'exchange_at_most_255_bytes', 'routing_key_at_most_255_bytes', 'content_type_at_most_255_bytes',
        'type_at_most_255_bytes', 'content_encoding_at_most_255_bytes', 'correlation_id_at_most_255_bytes', 'reply_to_at_most_255_bytes',
        'reply_to_is_not_direct_reply_to', 'default_exchange_is_not_for_direct_reply_to', 'app_id_at_most_255_bytes', 'priority_within_0_to_255',
        'expiration_within_0_to_315360000000_ms', 'priority_or_ordering_key_not_both', 'ordering_key_is_not_supported_by_this_version',
        'supersede_is_not_supported_by_this_version', 'type_is_not_amqp_1_0', 'headers_are_not_those_of_amqp_1_0',
        'headers_stream_filter_value_is_string_of_at_most_255_bytes', 'headers_is_json_object', 'headers_at_most_64_kib',
        'headers_cc_and_bcc_are_arrays_of_strings', 'headers_nested_at_most_64_deep', 'headers_numbers_fit_a_double', 'headers_names_at_most_255_bytes'
    ];
    changed text;
BEGIN
    FOREACH changed IN ARRAY ARRAY['outbox.messages', 'outbox.deferred'] LOOP
        EXECUTE format(
            'ALTER TABLE %s %s, ADD CONSTRAINT is_publishable CHECK (outbox.is_publishable(exchange, routing_key, payload, payload_json, '
            'content_type, headers, ordering_key, type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede)) NOT VALID',
            changed, (SELECT string_agg(format('DROP CONSTRAINT %I', rule), ', ') FROM unnest(replaced) AS r (rule))
        );
    END LOOP;
END
$$;
