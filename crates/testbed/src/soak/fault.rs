//! What can go wrong, and what each fault takes for itself.

use std::fmt;

/// How many relays there are.
pub(crate) const RELAYS: u64 = 2;

/// How many quorum queues have their process suspended from time to time.
pub(crate) const STUCK_QUEUES: u64 = 3;

/// One thing that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    RelayKilled {
        relay: u64,
    },
    RelayTerminated {
        relay: u64,
    },
    RelayPaused {
        relay: u64,
    },
    BrokerKilled,
    BrokerStopped,
    ConnectionsClosed,
    MemoryAlarm,
    QueueSuspended {
        queue: u64,
    },
    ExchangeMissing,
    WriteForbidden,
    QueueFull,
    BindingMissing,
    DatabaseRestarted,
    BackendsTerminated,
    DatabaseReadOnly,
    RowsKept,
    SnapshotHeld,
    Path {
        relay: u64,
        peer: Peer,
        trouble: Trouble,
    },
}

/// A relay's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Broker,
    Database,
}

/// What a network path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Cut,
    /// What the relay sends does not get through.
    RequestsStalled,
    /// What the server sends does not get through.
    AnswersStalled,
    Slowed {
        bytes_per_second: u64,
    },
}

/// What only one fault at a time can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Resource {
    Relay(u64),
    Broker,
    Queue(u64),
    Exchange,
    Permission,
    FullQueue,
    Binding,
    Database,
    Deletions,
    Snapshot,
    BrokerPath(u64),
    DatabasePath(u64),
}

/// What a fault wants of the servers that other faults take down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// The broker must be up when it comes and when it goes.
    BrokerAtEdges,
    /// The broker must be up from its beginning to its end: a restart would end it.
    BrokerThroughout,
    /// The same for the database.
    DatabaseThroughout,
}

impl Fault {
    /// What it is about.
    pub(crate) fn resource(self) -> Resource {
        match self {
            Self::RelayKilled { relay }
            | Self::RelayTerminated { relay }
            | Self::RelayPaused { relay } => Resource::Relay(relay),
            Self::BrokerKilled
            | Self::BrokerStopped
            | Self::ConnectionsClosed
            | Self::MemoryAlarm => Resource::Broker,
            Self::QueueSuspended { queue } => Resource::Queue(queue),
            Self::ExchangeMissing => Resource::Exchange,
            Self::WriteForbidden => Resource::Permission,
            Self::QueueFull => Resource::FullQueue,
            Self::BindingMissing => Resource::Binding,
            Self::DatabaseRestarted | Self::BackendsTerminated | Self::DatabaseReadOnly => {
                Resource::Database
            }
            Self::RowsKept => Resource::Deletions,
            Self::SnapshotHeld => Resource::Snapshot,
            Self::Path { relay, peer, .. } => match peer {
                Peer::Broker => Resource::BrokerPath(relay),
                Peer::Database => Resource::DatabasePath(relay),
            },
        }
    }

    /// What it wants of the servers.
    pub(crate) fn need(self) -> Need {
        match self {
            Self::QueueSuspended { .. } => Need::BrokerThroughout,
            Self::ExchangeMissing | Self::WriteForbidden | Self::BindingMissing => {
                Need::BrokerAtEdges
            }
            Self::RowsKept | Self::SnapshotHeld => Need::DatabaseThroughout,
            Self::RelayKilled { .. }
            | Self::RelayTerminated { .. }
            | Self::RelayPaused { .. }
            | Self::BrokerKilled
            | Self::BrokerStopped
            | Self::ConnectionsClosed
            | Self::MemoryAlarm
            | Self::QueueFull
            | Self::DatabaseRestarted
            | Self::BackendsTerminated
            | Self::DatabaseReadOnly
            | Self::Path { .. } => Need::Nothing,
        }
    }

    /// Whether the broker's process is gone during this fault.
    pub(crate) fn takes_broker_down(self) -> bool {
        matches!(self, Self::BrokerKilled | Self::BrokerStopped)
    }

    /// Whether the database's processes are gone during this fault.
    pub(crate) fn takes_database_down(self) -> bool {
        matches!(self, Self::DatabaseRestarted)
    }

    /// Whether it concerns one route, so that messages of every other are to arrive as if nothing were.
    pub(crate) fn is_of_one_route(self) -> bool {
        match self {
            Self::QueueSuspended { .. }
            | Self::ExchangeMissing
            | Self::WriteForbidden
            | Self::QueueFull
            | Self::BindingMissing
            | Self::SnapshotHeld => true,
            Self::RelayKilled { .. }
            | Self::RelayTerminated { .. }
            | Self::RelayPaused { .. }
            | Self::BrokerKilled
            | Self::BrokerStopped
            | Self::ConnectionsClosed
            | Self::MemoryAlarm
            | Self::DatabaseRestarted
            | Self::BackendsTerminated
            | Self::DatabaseReadOnly
            | Self::RowsKept
            | Self::Path { .. } => false,
        }
    }

    /// What it is called in the summary.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::RelayKilled { .. } => "relay killed (SIGKILL)",
            Self::RelayTerminated { .. } => "relay stopped (SIGTERM)",
            Self::RelayPaused { .. } => "relay paused (SIGSTOP)",
            Self::BrokerKilled => "RabbitMQ killed",
            Self::BrokerStopped => "RabbitMQ stopped",
            Self::ConnectionsClosed => "connections closed by RabbitMQ",
            Self::MemoryAlarm => "memory alarm",
            Self::QueueSuspended { .. } => "queue suspended",
            Self::ExchangeMissing => "exchange missing",
            Self::WriteForbidden => "write permission revoked",
            Self::QueueFull => "queue full, reject-publish",
            Self::BindingMissing => "binding missing",
            Self::DatabaseRestarted => "PostgreSQL restarted (immediate)",
            Self::BackendsTerminated => "relays' backends terminated",
            Self::DatabaseReadOnly => "PostgreSQL read-only",
            Self::RowsKept => "rows kept by the database",
            Self::SnapshotHeld => "old snapshot held",
            Self::Path { peer, trouble, .. } => match (peer, trouble) {
                (Peer::Broker, Trouble::Cut) => "path to RabbitMQ cut",
                (Peer::Broker, Trouble::RequestsStalled) => "path to RabbitMQ stalled",
                (Peer::Broker, Trouble::AnswersStalled) => "path from RabbitMQ stalled",
                (Peer::Broker, Trouble::Slowed { .. }) => "path to RabbitMQ slowed",
                (Peer::Database, Trouble::Cut) => "path to PostgreSQL cut",
                (Peer::Database, Trouble::RequestsStalled) => "path to PostgreSQL stalled",
                (Peer::Database, Trouble::AnswersStalled) => "path from PostgreSQL stalled",
                (Peer::Database, Trouble::Slowed { .. }) => "path to PostgreSQL slowed",
            },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::RelayKilled { relay }
            | Self::RelayTerminated { relay }
            | Self::RelayPaused { relay } => write!(f, ", relay {relay}"),
            Self::QueueSuspended { queue } => write!(f, ", stuck-{queue}"),
            Self::Path { relay, trouble, .. } => {
                write!(f, ", relay {relay}")?;
                match trouble {
                    Trouble::Slowed { bytes_per_second } => {
                        write!(f, ", {} kB/s", bytes_per_second / 1000)
                    }
                    Trouble::Cut | Trouble::RequestsStalled | Trouble::AnswersStalled => Ok(()),
                }
            }
            Self::BrokerKilled
            | Self::BrokerStopped
            | Self::ConnectionsClosed
            | Self::MemoryAlarm
            | Self::ExchangeMissing
            | Self::WriteForbidden
            | Self::QueueFull
            | Self::BindingMissing
            | Self::DatabaseRestarted
            | Self::BackendsTerminated
            | Self::DatabaseReadOnly
            | Self::RowsKept
            | Self::SnapshotHeld => Ok(()),
        }
    }
}
