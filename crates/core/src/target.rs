//! What a breaker is open for: a route, or everything that goes to one exchange.

use std::fmt;

/// An exchange that takes nothing, or one route that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Every message to this exchange.
    Exchange(String),
    /// Every message to this exchange with this routing key.
    Route {
        /// The exchange, `""` for RabbitMQ's default exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
}

impl Target {
    /// The exchange, `""` for RabbitMQ's default exchange.
    #[must_use]
    pub fn exchange(&self) -> &str {
        match self {
            Self::Exchange(exchange) | Self::Route { exchange, .. } => exchange,
        }
    }

    /// The routing key; `None` when every one is meant.
    #[must_use]
    pub fn routing_key(&self) -> Option<&str> {
        match self {
            Self::Exchange(_) => None,
            Self::Route { routing_key, .. } => Some(routing_key),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "exchange '{exchange}'"),
            Self::Route {
                exchange,
                routing_key,
            } => write!(f, "exchange '{exchange}' with routing key '{routing_key}'"),
        }
    }
}
