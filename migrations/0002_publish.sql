-- outbox.publish: one message, from any client; to call it is the only right a producer needs.
--
-- Four functions of one name, because clients differ in the type they give a payload: most send text,
-- or no type at all. Every argument there will be is here from the start: one added later would make a
-- second function beside the first, or lose what was granted.

-- What the four have in common. Not for callers, and never on its own: it runs within theirs, with their
-- rights and their search_path.
CREATE FUNCTION outbox.enqueue(
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
    IF deliver_at IS NOT NULL THEN
        RAISE EXCEPTION 'deliver_at is not supported by this version of Postrider'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF supersede THEN
        RAISE EXCEPTION 'supersede is not supported by this version of Postrider'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    id := coalesce(id, gen_random_uuid());
    INSERT INTO outbox.messages
        (id, exchange, routing_key, payload, payload_json, content_type, headers, type,
         content_encoding, correlation_id, reply_to, app_id, priority, expiration)
    VALUES
        (id, exchange, routing_key, payload, payload_json, content_type, coalesce(headers, '{}'), type,
         content_encoding, correlation_id, reply_to, app_id, priority, expiration);
    RETURN id;
END
$$;

REVOKE ALL ON FUNCTION outbox.enqueue(
    text, text, bytea, json, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) FROM PUBLIC;

COMMENT ON FUNCTION outbox.enqueue(
    text, text, bytea, json, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) IS 'Part of outbox.publish; call that.';

-- Text. Where the content type promises JSON, as the default does, it is checked and kept to the letter;
-- otherwise it is sent as UTF-8.
CREATE FUNCTION outbox.publish(
    exchange text,
    routing_key text,
    payload text,
    headers jsonb DEFAULT '{}',
    ordering_key text DEFAULT NULL,
    type text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    id uuid DEFAULT NULL,
    content_type text DEFAULT NULL,
    content_encoding text DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    reply_to text DEFAULT NULL,
    app_id text DEFAULT NULL,
    priority integer DEFAULT NULL,
    expiration bigint DEFAULT NULL,
    supersede boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    content_type := coalesce(content_type, 'application/json');
    IF lower(split_part(content_type, ';', 1)) ~ '^\s*\S+[/+]json\s*$' THEN
        RETURN outbox.enqueue(exchange, routing_key, NULL, payload::json, headers, ordering_key, type, deliver_at, id,
            content_type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
    END IF;
    RETURN outbox.enqueue(exchange, routing_key, convert_to(payload, 'UTF8'), NULL, headers, ordering_key, type, deliver_at, id,
        content_type, content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
END
$$;

REVOKE ALL ON FUNCTION outbox.publish(
    text, text, text, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) FROM PUBLIC;

COMMENT ON FUNCTION outbox.publish(
    text, text, text, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) IS 'Puts a message into the outbox, in the transaction of the caller, and returns its id. The payload is text, checked to be JSON and kept to the letter when its content type promises JSON (the default: application/json), sent as UTF-8 otherwise.';

-- JSON, kept to the letter.
CREATE FUNCTION outbox.publish(
    exchange text,
    routing_key text,
    payload json,
    headers jsonb DEFAULT '{}',
    ordering_key text DEFAULT NULL,
    type text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    id uuid DEFAULT NULL,
    content_type text DEFAULT NULL,
    content_encoding text DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    reply_to text DEFAULT NULL,
    app_id text DEFAULT NULL,
    priority integer DEFAULT NULL,
    expiration bigint DEFAULT NULL,
    supersede boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN outbox.enqueue(exchange, routing_key, NULL, payload, headers, ordering_key, type, deliver_at, id,
        coalesce(content_type, 'application/json'), content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
END
$$;

REVOKE ALL ON FUNCTION outbox.publish(
    text, text, json, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) FROM PUBLIC;

COMMENT ON FUNCTION outbox.publish(
    text, text, json, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) IS 'Puts a message into the outbox, in the transaction of the caller, and returns its id. The payload is JSON, kept to the letter.';

-- JSON as PostgreSQL writes it.
CREATE FUNCTION outbox.publish(
    exchange text,
    routing_key text,
    payload jsonb,
    headers jsonb DEFAULT '{}',
    ordering_key text DEFAULT NULL,
    type text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    id uuid DEFAULT NULL,
    content_type text DEFAULT NULL,
    content_encoding text DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    reply_to text DEFAULT NULL,
    app_id text DEFAULT NULL,
    priority integer DEFAULT NULL,
    expiration bigint DEFAULT NULL,
    supersede boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN outbox.enqueue(exchange, routing_key, NULL, payload::text::json, headers, ordering_key, type, deliver_at, id,
        coalesce(content_type, 'application/json'), content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
END
$$;

REVOKE ALL ON FUNCTION outbox.publish(
    text, text, jsonb, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) FROM PUBLIC;

COMMENT ON FUNCTION outbox.publish(
    text, text, jsonb, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) IS 'Puts a message into the outbox, in the transaction of the caller, and returns its id. The payload is JSON, as PostgreSQL writes it.';

-- Bytes. A parameter that has no type would be taken for text: write payload => $1::bytea.
CREATE FUNCTION outbox.publish(
    exchange text,
    routing_key text,
    payload bytea,
    headers jsonb DEFAULT '{}',
    ordering_key text DEFAULT NULL,
    type text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    id uuid DEFAULT NULL,
    content_type text DEFAULT NULL,
    content_encoding text DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    reply_to text DEFAULT NULL,
    app_id text DEFAULT NULL,
    priority integer DEFAULT NULL,
    expiration bigint DEFAULT NULL,
    supersede boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN outbox.enqueue(exchange, routing_key, payload, NULL, headers, ordering_key, type, deliver_at, id,
        coalesce(content_type, 'application/octet-stream'), content_encoding, correlation_id, reply_to, app_id, priority, expiration, supersede);
END
$$;

REVOKE ALL ON FUNCTION outbox.publish(
    text, text, bytea, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) FROM PUBLIC;

COMMENT ON FUNCTION outbox.publish(
    text, text, bytea, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean
) IS 'Puts a message into the outbox, in the transaction of the caller, and returns its id. The payload is bytes, with content type application/octet-stream unless another is given; a parameter without a type needs ::bytea.';
