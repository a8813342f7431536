//! What each kind of user of an outbox may do: the one list behind `postrider grants`, and behind what `run` and
//! `check` look for.

/// Who uses the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Applications, and `postrider publish`.
    Producer {
        /// Whether by INSERT too, as an ORM does it, and not by `outbox.publish` alone.
        insert: bool,
    },
    /// `postrider run` and `postrider check`.
    Relay,
    /// People with `postrider status`, `dead-letters`, `deferred` and `keys`.
    Operator,
}

/// One right on one object of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) privilege: &'static str,
    pub(crate) on: On,
}

/// What a right is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Table(&'static str),
    Columns(&'static str, &'static [&'static str]),
    /// By its name and the types of its parameters.
    Function(&'static str, &'static str),
}

/// What a client reads back from an INSERT: Django, SQLAlchemy and TypeORM do so by themselves.
const RETURNED: &[&str] = &[
    "seq",
    "id",
    "exchange",
    "content_type",
    "headers",
    "created_at",
];

/// All but `seq` and `created_at`, which are the database's.
const INSERTED: &[&str] = &[
    "id",
    "exchange",
    "routing_key",
    "payload",
    "payload_json",
    "content_type",
    "headers",
    "ordering_key",
    "type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "app_id",
    "priority",
    "expiration",
    "supersede",
];

/// What `status` shows of a message that is on its way.
const SHOWN: &[&str] = &[
    "seq",
    "id",
    "exchange",
    "routing_key",
    "ordering_key",
    "created_at",
];

/// What `deferred list` shows.
const SHOWN_DEFERRED: &[&str] = &[
    "seq",
    "id",
    "exchange",
    "routing_key",
    "ordering_key",
    "created_at",
    "attempts",
    "due_at",
    "cause",
    "reason",
    "error",
    "deferred_at",
];

/// What `keys show` shows.
const SHOWN_PARKED: &[&str] = &[
    "seq",
    "id",
    "exchange",
    "routing_key",
    "ordering_key",
    "created_at",
    "parked_at",
];

/// A row lock asks for UPDATE on any one column. The value of this one is always the database's, so that nothing
/// of a message can be changed with it.
const LOCK_MESSAGES: &[&str] = &["seq"];
const LOCK_DEAD_LETTERS: &[&str] = &["given_up_at"];
const LOCK_PARKED: &[&str] = &["parked_at"];
const LOCK_BLOCKED_KEYS: &[&str] = &["blocked_at"];

/// What a relay notes of a blocked key. Who its head is, is up to the triggers.
const PROGRESS: &[&str] = &["parked", "resume_from"];

/// One of the four functions of this name, by its parameters.
const fn publish(parameters: &'static str) -> Right {
    Right {
        privilege: "EXECUTE",
        on: On::Function("publish", parameters),
    }
}

const PUBLISH: &[Right] = &[
    publish(
        "text, text, text, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean",
    ),
    publish(
        "text, text, json, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean",
    ),
    publish(
        "text, text, jsonb, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean",
    ),
    publish(
        "text, text, bytea, jsonb, text, text, timestamptz, uuid, text, text, text, text, text, integer, bigint, boolean",
    ),
];

const INSERT: &[Right] = &[
    columns("INSERT", "messages", INSERTED),
    columns("SELECT", "messages", RETURNED),
    RULES,
    HEADER_NAMES,
];

/// Called by a constraint, with the rights of whoever writes the row; and what that calls.
const RULES: Right = Right {
    privilege: "EXECUTE",
    on: On::Function(
        "is_publishable",
        "text, text, bytea, json, text, jsonb, text, text, text, text, text, text, integer, bigint, boolean",
    ),
};
const HEADER_NAMES: Right = Right {
    privilege: "EXECUTE",
    on: On::Function("header_names_are_at_most_255_bytes", "jsonb"),
};

const RELAY: &[Right] = &[
    table("SELECT", "messages"),
    table("DELETE", "messages"),
    columns("UPDATE", "messages", LOCK_MESSAGES),
    table("SELECT", "deferred"),
    table("INSERT", "deferred"),
    table("DELETE", "deferred"),
    columns(
        "UPDATE",
        "deferred",
        &[
            "attempts",
            "due_at",
            "cause",
            "reason",
            "error",
            "deferred_at",
        ],
    ),
    table("SELECT", "dead_letters"),
    table("INSERT", "dead_letters"),
    table("DELETE", "dead_letters"),
    columns("UPDATE", "dead_letters", LOCK_DEAD_LETTERS),
    table("SELECT", "parked"),
    table("INSERT", "parked"),
    table("DELETE", "parked"),
    columns("UPDATE", "parked", LOCK_PARKED),
    table("SELECT", "blocked_keys"),
    columns("UPDATE", "blocked_keys", PROGRESS),
    table("DELETE", "blocked_keys"),
    table("SELECT", "postrider_migrations"),
    Right {
        privilege: "EXECUTE",
        on: On::Function("next_seq", ""),
    },
    RULES,
    HEADER_NAMES,
];

const OPERATOR: &[Right] = &[
    columns("SELECT", "messages", SHOWN),
    columns("SELECT", "deferred", SHOWN_DEFERRED),
    table("INSERT", "deferred"),
    columns("UPDATE", "deferred", &["due_at"]),
    table("SELECT", "dead_letters"),
    table("DELETE", "dead_letters"),
    columns("UPDATE", "dead_letters", LOCK_DEAD_LETTERS),
    columns("SELECT", "parked", SHOWN_PARKED),
    table("SELECT", "blocked_keys"),
    columns("UPDATE", "blocked_keys", LOCK_BLOCKED_KEYS),
    table("SELECT", "postrider_migrations"),
    RULES,
    HEADER_NAMES,
];

const fn table(privilege: &'static str, name: &'static str) -> Right {
    Right {
        privilege,
        on: On::Table(name),
    }
}

const fn columns(
    privilege: &'static str,
    table: &'static str,
    columns: &'static [&'static str],
) -> Right {
    Right {
        privilege,
        on: On::Columns(table, columns),
    }
}

impl Group {
    /// All it may do, beside using the schema.
    pub(crate) fn rights(self) -> Vec<Right> {
        match self {
            Self::Producer { insert: false } => PUBLISH.to_vec(),
            Self::Producer { insert: true } => [PUBLISH, INSERT].concat(),
            Self::Relay => RELAY.to_vec(),
            Self::Operator => OPERATOR.to_vec(),
        }
    }

    /// As it is named on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Producer { .. } => "producer",
            Self::Relay => "relay",
            Self::Operator => "operator",
        }
    }
}
