//! Which routes keep messages from being confirmed.
//!
//! RabbitMQ works through the messages of a channel in their order, and confirms each when its queue
//! has it. So on a channel that answers, an unconfirmed message waits for its own queue and for nothing
//! else. But a channel may stop answering (all seen on RabbitMQ 3.10):
//!
//! - With its first message to a quorum queue it registers there, by a call that it waits for. A queue
//!   that is suspended or has no leader holds the channel by that for 65 seconds, and then again for
//!   its next message. Confirms are collected while messages come in, so not even what was sent
//!   *before* that message is confirmed: its place says nothing, and it has to be searched for.
//! - With more than 32 of its messages unconfirmed by one quorum queue, it lets the connection read
//!   about 400 more, and then nothing: the connection does not answer either.

use std::collections::HashMap;

/// The exchange and the routing key of a message.
pub(crate) type Route<'a> = (&'a str, &'a str);

/// A message of a window: its position in the batch, where it goes to, and whether the broker has
/// spoken of it.
pub(crate) struct Standing<'a> {
    pub(crate) position: usize,
    pub(crate) route: Route<'a>,
    pub(crate) resolved: bool,
}

/// How a window stood when it was given up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standstill {
    /// Others of the batch were confirmed, then nothing for a while, and the channel answers.
    Straggling,
    /// Nothing for a while, and the channel does not answer, but the connection does.
    Held,
    /// The connection does not answer.
    Unanswered,
    /// The deadline passed, before anything was heard in this batch, on a connection that answers.
    NothingHeard,
    /// The deadline passed with confirms still coming.
    OutOfTime,
}

impl Standstill {
    /// Whether it was the deadline that ended the wait.
    pub(crate) fn is_out_of_time(self) -> bool {
        match self {
            Self::NothingHeard | Self::OutOfTime => true,
            Self::Straggling | Self::Held | Self::Unanswered => false,
        }
    }
}

/// Who is at fault for a standstill.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Blame<'a> {
    /// The routes that do not take messages.
    pub(crate) accused: Vec<Route<'a>>,
    /// One message of each route that may be at fault, where that has to be found out.
    pub(crate) suspects: Vec<usize>,
}

/// How many messages of a channel a quorum queue may leave unconfirmed before the channel stops the
/// connection: `quorum_commands_soft_limit` of RabbitMQ.
const SOFT_LIMIT: usize = 32;

/// Finds out who is at fault. `window` is in the order of sending.
pub(crate) fn blame<'a>(standstill: Standstill, window: &[Standing<'a>]) -> Blame<'a> {
    let open = || window.iter().filter(|standing| !standing.resolved);
    match standstill {
        Standstill::Straggling => Blame {
            accused: firsts(open()).map(|standing| standing.route).collect(),
            suspects: Vec::new(),
        },
        Standstill::Held | Standstill::NothingHeard => {
            let mut routes: Vec<_> = firsts(open()).collect();
            match (routes.pop(), routes.is_empty()) {
                (Some(only), true) => Blame {
                    accused: vec![only.route],
                    suspects: Vec::new(),
                },
                (last, _) if standstill == Standstill::Held => {
                    routes.extend(last);
                    Blame {
                        accused: Vec::new(),
                        suspects: routes.iter().map(|standing| standing.position).collect(),
                    }
                }
                // As well the broker.
                _ => Blame::default(),
            }
        }
        Standstill::Unanswered => {
            let worked_through = window
                .iter()
                .rposition(|standing| standing.resolved)
                .unwrap_or(0);
            let mut unconfirmed: HashMap<Route<'a>, usize> = HashMap::new();
            for standing in window.iter().take(worked_through) {
                if !standing.resolved {
                    *unconfirmed.entry(standing.route).or_default() += 1;
                }
            }
            unconfirmed.retain(|_, count| *count > SOFT_LIMIT);
            Blame {
                accused: unconfirmed.into_keys().collect(),
                suspects: Vec::new(),
            }
        }
        Standstill::OutOfTime => Blame::default(),
    }
}

/// The first message of each route, in order.
fn firsts<'w, 'a: 'w>(
    window: impl Iterator<Item = &'w Standing<'a>>,
) -> impl Iterator<Item = &'w Standing<'a>> {
    let mut seen = std::collections::HashSet::new();
    window.filter(move |standing| seen.insert(standing.route))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` is an unconfirmed message of route a, `A` a confirmed one.
    fn window(messages: &'static str) -> Vec<Standing<'static>> {
        let routes = "abcdefghijklmnopqrstuvwxyz";
        messages
            .char_indices()
            .map(|(position, letter)| {
                let place = (letter.to_ascii_lowercase() as usize) - ('a' as usize);
                Standing {
                    position,
                    route: ("", &routes[place..=place]),
                    resolved: letter.is_ascii_uppercase(),
                }
            })
            .collect()
    }

    fn accused(standstill: Standstill, messages: &'static str) -> String {
        let blame = blame(standstill, &window(messages));
        assert!(blame.suspects.is_empty());
        blame.accused.iter().map(|(_, key)| *key).collect()
    }

    #[test]
    fn on_a_channel_that_answers_every_unconfirmed_route_is_at_fault() {
        assert_eq!(accused(Standstill::Straggling, "ABaCBb"), "ab");
        assert_eq!(accused(Standstill::Straggling, "Aaa"), "a");
    }

    #[test]
    fn on_a_held_channel_a_single_route_is_at_fault_and_several_are_suspected_once_each() {
        assert_eq!(accused(Standstill::Held, "ABbb"), "b");
        assert_eq!(
            blame(Standstill::Held, &window("AbacBa")),
            Blame {
                accused: Vec::new(),
                suspects: vec![1, 2, 3],
            }
        );
    }

    #[test]
    fn with_nothing_heard_until_the_deadline_only_a_single_route_can_be_told_from_the_broker() {
        assert_eq!(accused(Standstill::NothingHeard, "aaa"), "a");
        assert_eq!(accused(Standstill::NothingHeard, "aba"), "");
        assert_eq!(accused(Standstill::OutOfTime, "Aaa"), "");
    }

    #[test]
    fn a_connection_that_does_not_answer_is_held_up_by_a_route_with_more_than_32_unconfirmed() {
        let unconfirmed = "a".repeat(33);
        let most: &'static str = Box::leak(format!("Bb{unconfirmed}Ccccc").into_boxed_str());
        assert_eq!(accused(Standstill::Unanswered, most), "a");
        let behind: &'static str = Box::leak(format!("Bb{unconfirmed}c").into_boxed_str());
        assert_eq!(accused(Standstill::Unanswered, behind), "");
        let fewer: &'static str = Box::leak(most.replacen('a', "A", 1).into_boxed_str());
        assert_eq!(accused(Standstill::Unanswered, fewer), "");
        assert_eq!(accused(Standstill::Unanswered, "aab"), "");
    }
}
