//! Whose fault a channel error is.
//!
//! The broker closes the channel over one message and does not say which; its text names the
//! exchange, the topic or a size at most. What the text names is looked for in the batch, never the
//! other way round: names may hold quotes, and a text is cut at 255 bytes.

use postrider_core::{Failure, Message, Reason, Scope};

/// What the broker said when it closed a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelError {
    /// The AMQP reply code.
    pub(crate) code: u16,
    /// The reply text, such as `NOT_FOUND - no exchange 'orders' in vhost '/'`.
    pub(crate) text: String,
}

/// RabbitMQ ends a reply text that is longer than AMQP carries with this, at 255 bytes.
const CUT: &str = "...";
const LONGEST_TEXT: usize = 255;

impl ChannelError {
    /// What the broker said, if this error is one that closed a channel.
    pub(crate) fn of(error: &lapin::Error) -> Option<Self> {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(said) if error.is_amqp_soft_error() => Some(Self {
                code: said.get_id(),
                text: said.get_message().as_str().to_owned(),
            }),
            _ => None,
        }
    }

    /// The messages among `batch` that the error names and that would meet it too: all of a missing
    /// exchange, all of a forbidden topic. Returned as positions; none when the error names nothing,
    /// or not clearly.
    pub(crate) fn blamed<'a>(
        &self,
        batch: impl Iterator<Item = (usize, &'a Message)> + Clone,
    ) -> Option<(Reason, Vec<usize>)> {
        if let Some(rest) = self.after("access to topic '") {
            let named = self.all_alike(rest, batch, |message| {
                format!(
                    "{}' in exchange '{}' in",
                    message.routing_key,
                    shown(message)
                )
            });
            return Some((Reason::Forbidden, named?));
        }
        for (marker, reason) in [
            ("no exchange '", Reason::ExchangeMissing),
            ("access to exchange '", Reason::Forbidden),
            ("to internal exchange '", Reason::Forbidden),
        ] {
            if let Some(rest) = self.after(marker) {
                let named =
                    self.all_alike(rest, batch, |message| format!("{}' in", shown(message)));
                return Some((reason, named?));
            }
        }
        let most = self.largest_body()?;
        let larger: Vec<_> = batch
            .filter(|(_, message)| message.payload.fetched_bytes() > most)
            .map(|(position, _)| position)
            .collect();
        (!larger.is_empty()).then_some((Reason::TooLarge, larger))
    }

    /// The failure of a message that alone was in flight when the channel closed.
    pub(crate) fn alone(&self) -> Failure {
        let reason = match self.code {
            404 => Reason::ExchangeMissing,
            403 => Reason::Forbidden,
            311 => Reason::TooLarge,
            _ if self.largest_body().is_some() => Reason::TooLarge,
            _ => Reason::NotEncodable,
        };
        self.failure(reason)
    }

    /// A failure of this class, with what the broker said and what can be done.
    pub(crate) fn failure(&self, reason: Reason) -> Failure {
        let advice = match reason {
            Reason::Forbidden if self.text.contains("internal exchange '") => {
                "no client may publish to an internal exchange: correct the row's exchange"
            }
            Reason::ExchangeMissing => "declare the exchange, or correct the row's exchange",
            Reason::Forbidden => "grant the broker's user write permission there",
            Reason::TooLarge => "raise max_message_size in rabbitmq.conf, or send less",
            _ => "the broker refuses a property or header of this row",
        };
        let failure = Failure::new(reason, format!("{} {}: {advice}", self.code, self.line()));
        if self.text.contains("access to topic '") {
            // Topic permissions refuse one routing key and pass others.
            failure.with_scope(Scope::Message)
        } else {
            failure
        }
    }

    /// Whether it is the login that is refused, and not one exchange or topic: a token has expired, or whom the broker
    /// asks for rights does not answer. `login_is_over`: the token of the connection has expired, as far as is known.
    pub(crate) fn is_of_the_login(&self, login_is_over: bool) -> bool {
        // Where a backend says no, the text ends before this.
        self.code == 403 && (login_is_over || self.text.contains(" returned an error"))
    }

    /// The text in one line: Erlang terms in it come over several.
    pub(crate) fn line(&self) -> String {
        let lines: Vec<_> = self.text.lines().map(str::trim).collect();
        lines.join(" ")
    }

    fn after(&self, marker: &str) -> Option<&str> {
        self.text.split_once(marker).map(|(_, rest)| rest)
    }

    /// The broker's limit, from `message size 200 is larger than configured max size 100`.
    fn largest_body(&self) -> Option<u64> {
        self.text
            .contains("message size")
            .then(|| self.after("max size "))
            .flatten()?
            .trim()
            .parse()
            .ok()
    }

    /// The positions whose name the text shows, unless different names could be meant.
    fn all_alike<'a>(
        &self,
        rest: &str,
        batch: impl Iterator<Item = (usize, &'a Message)>,
        name: impl Fn(&Message) -> String,
    ) -> Option<Vec<usize>> {
        let cut = (self.text.len() >= LONGEST_TEXT)
            .then(|| rest.strip_suffix(CUT))
            .flatten();
        let mut found: Option<String> = None;
        let mut positions = Vec::new();
        for (position, message) in batch {
            let name = name(message);
            let named =
                rest.starts_with(&name) || cut.is_some_and(|beginning| name.starts_with(beginning));
            if !named {
                continue;
            }
            match &found {
                Some(other) if *other != name => return None,
                _ => found = Some(name),
            }
            positions.push(position);
        }
        found.map(|_| positions)
    }
}

/// The exchange as the broker writes it.
fn shown(message: &Message) -> &str {
    match message.exchange.as_str() {
        "" => "amq.default",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postrider_core::{Payload, Properties, Seq};
    use std::time::Duration;

    fn message(exchange: &str, routing_key: &str, bytes: usize) -> Message {
        Message {
            seq: Seq(1),
            id: uuid::Uuid::nil(),
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            payload: Payload::Fetched(vec![0; bytes]),
            headers: postrider_core::Headers::default(),
            properties: Properties::default(),
            created_at_unix: 0,
            age_at_claim: Duration::ZERO,
            attempts: 0,
            origin: postrider_core::Origin::Messages,
            ordered: None,
        }
    }

    fn said(code: u16, text: &str) -> ChannelError {
        ChannelError {
            code,
            text: text.to_owned(),
        }
    }

    fn blamed(code: u16, text: &str, batch: &[Message]) -> Option<(Reason, Vec<usize>)> {
        said(code, text).blamed(batch.iter().enumerate())
    }

    #[test]
    fn a_missing_exchange_is_every_message_of_that_exchange() {
        let batch = ["a", "b", "a", "ab", ""].map(|exchange| message(exchange, "k", 1));
        assert_eq!(
            blamed(404, "NOT_FOUND - no exchange 'a' in vhost '/'", &batch),
            Some((Reason::ExchangeMissing, vec![0, 2]))
        );
    }

    #[test]
    fn a_refusal_by_rabbitmq_3_10_and_by_4_0_names_the_same_messages() {
        let batch = [("a", "x"), ("a", "y"), ("b", "x"), ("", "x")]
            .map(|(exchange, key)| message(exchange, key, 1));
        for access in ["access", "write access"] {
            let exchange = |name: &str| {
                format!(
                    "ACCESS_REFUSED - {access} to exchange '{name}' in vhost 'v' refused for user 'u'"
                )
            };
            assert_eq!(
                blamed(403, &exchange("a"), &batch),
                Some((Reason::Forbidden, vec![0, 1]))
            );
            assert_eq!(
                blamed(403, &exchange("amq.default"), &batch),
                Some((Reason::Forbidden, vec![3]))
            );
            let topic = format!(
                "ACCESS_REFUSED - {access} to topic 'x' in exchange 'a' in vhost 'v' refused for user 'u'"
            );
            assert_eq!(
                blamed(403, &topic, &batch),
                Some((Reason::Forbidden, vec![0]))
            );
        }
        let internal = "ACCESS_REFUSED - cannot publish to internal exchange 'b' in vhost 'v'";
        assert_eq!(
            blamed(403, internal, &batch),
            Some((Reason::Forbidden, vec![2]))
        );
        assert!(
            said(403, internal)
                .alone()
                .detail
                .contains("correct the row")
        );
    }

    #[test]
    fn a_token_that_has_expired_is_the_fault_of_no_exchange() {
        let plain = "ACCESS_REFUSED - access to exchange 'a' in vhost 'v' refused for user 'u'";
        let error = format!(
            "{plain}, backend rabbit_auth_backend_oauth2 returned an error: <<\"Provided JWT token has expired at\n  timestamp 1 (validated at 2)\">>\n"
        );
        assert!(said(403, &error).is_of_the_login(false));
        assert!(!said(403, &error).line().contains('\n'));
        assert!(!said(403, plain).is_of_the_login(false));
        // Cut before the backend's word, or said otherwise by another version.
        assert!(said(403, plain).is_of_the_login(true));
        assert!(!said(404, "NOT_FOUND - no exchange 'a' in vhost '/'").is_of_the_login(true));
    }

    #[test]
    fn a_body_over_the_brokers_limit_is_every_message_over_it() {
        let batch = [10, 11, 5, 20].map(|bytes| message("", "k", bytes));
        let text = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10";
        assert_eq!(
            blamed(406, text, &batch),
            Some((Reason::TooLarge, vec![1, 3]))
        );
        assert_eq!(blamed(406, text, &batch[..1]), None);
        assert_eq!(said(406, text).alone().reason, Reason::TooLarge);
    }

    #[test]
    fn a_text_that_names_nothing_or_nothing_of_the_batch_blames_nobody() {
        let batch = [message("a", "k", 1), message("b", "k", 1)];
        for (code, text) in [
            (
                406,
                "PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"CC\",long}",
            ),
            (
                406,
                "PRECONDITION_FAILED - invalid expiration '5000000000000': {value_too_large,\n                  5000000000000}",
            ),
            (404, "NOT_FOUND - no exchange 'c' in vhost '/'"),
            (404, "NOT_FOUND - no exchange 'a"),
            (403, ""),
        ] {
            assert_eq!(blamed(code, text, &batch), None, "{text}");
        }
        let alone = said(406, "PRECONDITION_FAILED - invalid\n      thing").alone();
        assert_eq!(alone.reason, Reason::NotEncodable);
        assert!(!alone.detail.contains('\n'));
    }

    #[test]
    fn a_text_cut_at_255_bytes_blames_only_what_can_be_told_apart() {
        let long = "x".repeat(250);
        let (first, second) = (format!("{long}1"), format!("{long}2"));
        let mut text = format!("NOT_FOUND - no exchange '{first}' in vhost '/'");
        text.truncate(252);
        text.push_str("...");
        let both = [message(&first, "k", 1), message(&second, "k", 1)];
        assert_eq!(blamed(404, &text, &both), None);
        let one = [message("a", "k", 1), message(&first, "k", 1)];
        assert_eq!(
            blamed(404, &text, &one),
            Some((Reason::ExchangeMissing, vec![1]))
        );
    }

    #[test]
    fn quotes_in_names_do_not_lead_to_the_wrong_exchange() {
        let batch = [
            message("a", "k", 1),
            message("a' in vhost 'b", "k", 1),
            message("c", "k", 1),
        ];
        let text = "NOT_FOUND - no exchange 'a' in vhost 'b' in vhost '/'";
        assert_eq!(blamed(404, text, &batch), None);
        assert_eq!(
            blamed(404, text, &batch[1..]),
            Some((Reason::ExchangeMissing, vec![0]))
        );
    }
}
