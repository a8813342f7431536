"""outbox.publish from psycopg2, with its ordinary parameters. Argument: the database's URL."""
import json
import sys

import psycopg2
from psycopg2.extras import Json

TRICKY = json.dumps({"a": "C:\\new", "b": "é"})

db = psycopg2.connect(sys.argv[1])
with db, db.cursor() as cursor:
    publish = "SELECT outbox.publish(%s, %s, %s)"
    cursor.execute(publish, ("py2", "str", TRICKY))
    cursor.execute(publish, ("py2", "json", Json({"a": "C:\\new"})))
    cursor.execute(publish, ("py2", "bytes", b"\x00\xff\\x"))
    cursor.execute(
        "SELECT outbox.publish(%s, %s, %s, headers => %s, content_type => %s, priority => %s)",
        ("py2", "all", "plain", Json({"n": 1}), "text/plain", 5),
    )
