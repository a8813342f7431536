"""outbox.publish from psycopg, with its ordinary parameters. Argument: the database's URL."""
import json
import sys
import uuid

import psycopg
from psycopg.types.json import Json, Jsonb

TRICKY = json.dumps({"a": "C:\\new", "b": "é"})

with psycopg.connect(sys.argv[1]) as db:
    publish = "SELECT outbox.publish(%s, %s, %s)"
    ids = [
        db.execute(publish, ("py", "str", TRICKY)).fetchone()[0],
        db.execute(publish, ("py", "json", Json({"a": "C:\\new"}))).fetchone()[0],
        db.execute(publish, ("py", "jsonb", Jsonb({"a": "C:\\new"}))).fetchone()[0],
        db.execute(publish, ("py", "bytes", b"\x00\xff\\x")).fetchone()[0],
        db.execute(
            "SELECT outbox.publish(exchange => %s, routing_key => %s, payload => %s, content_type => %s, headers => %s,"
            " id => %s, type => %s, priority => %s, expiration => %s, correlation_id => %s, deliver_at => %s)",
            ("py", "all", "plain", "text/plain", Jsonb({"n": 1}), uuid.UUID(int=7), "t", 5, 60000, None, None),
        ).fetchone()[0],
    ]
    assert all(isinstance(id, uuid.UUID) for id in ids) and ids[4] == uuid.UUID(int=7)
