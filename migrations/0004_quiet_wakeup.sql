-- The wake-up becomes quiet: no notification while a relay is awake and polls anyway.
--
-- NOTIFY takes a lock that serialises the commits of the whole database. So a relay that is awake holds an
-- advisory lock, and the trigger notifies only when nobody does.

CREATE OR REPLACE FUNCTION outbox.messages_inserted() RETURNS trigger
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
        -- The lock of the relay that is awake: "post" in ASCII, and this table. One expression, in which no
        -- cancel can come between taking the lock and giving it back: a session of a pool would keep it.
        IF (CASE WHEN pg_catalog.pg_try_advisory_lock_shared(1886352244, TG_RELID::pg_catalog.int4)
                 THEN pg_catalog.pg_advisory_unlock_shared(1886352244, TG_RELID::pg_catalog.int4) END) THEN
            PERFORM pg_catalog.pg_notify('postrider_outbox', '');
        END IF;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.messages_inserted() IS
    'Wakes the relays at commit, unless one is awake, and makes the commit durable. SET LOCAL postrider.notify = ''off'' leaves the wake-up out.';

-- With the rights of its owner: reading the sequence takes a right of its own, which relays were not granted so far.
-- Of the table's own sequence, whatever its name: one that is left over from a table of that name before would
-- tell of another table.
CREATE FUNCTION outbox.next_seq() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    next_value bigint;
BEGIN
    EXECUTE 'SELECT last_value + is_called::integer FROM ' || pg_get_serial_sequence('outbox.messages', 'seq') INTO STRICT next_value;
    RETURN next_value;
END
$$;

COMMENT ON FUNCTION outbox.next_seq() IS
    'The seq that the next message will get. Relays read it to know below which seq no message can appear any more.';
