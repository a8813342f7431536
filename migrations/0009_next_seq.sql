-- The next seq, read as one.
--
-- While the server logs that a sequence goes on, once for every 32 values, the row of the sequence has for a moment the last of the values that
-- it logs in advance, up to 32 too high (nextval_internal in src/backend/commands/sequence.c: "set values that will be saved in xlog"). A SELECT reads
-- the row without the lock under which that happens, and now and then saw it: once in a thousand times beside sessions that take values as fast as they can
-- (crates/postgres/tests/next_seq.rs). A relay then took values for given that were not, its frontiers could pass the messages that got them, and what was
-- passed was found late, and with a key out of order.
-- pg_sequence_last_value() takes the lock. It has nothing to say of a sequence that was never called, or was set back to its beginning: then
-- the row is read, and counts if the sequence was not called meanwhile either.

CREATE OR REPLACE FUNCTION outbox.next_seq() RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    of_messages CONSTANT regclass := pg_get_serial_sequence('outbox.messages', 'seq')::regclass;
    last_given bigint;
    first_value bigint;
BEGIN
    LOOP
        last_given := pg_sequence_last_value(of_messages);
        IF last_given IS NOT NULL THEN
            RETURN last_given + 1;
        END IF;
        EXECUTE 'SELECT last_value FROM ' || of_messages INTO STRICT first_value;
        IF pg_sequence_last_value(of_messages) IS NULL THEN
            RETURN first_value;
        END IF;
    END LOOP;
END
$$;
