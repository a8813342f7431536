//! `[exchanges."NAME"]`: what is said of one exchange and goes before what is said of all.
//!
//! The names are the operator's own, so there is no variable for these keys, and a name is refused only
//! when no exchange can have it.

use std::collections::HashMap;

use postrider_core::UnroutablePolicy;
use toml::de::DeValue;

use super::keys::{self, KeyName};
use super::kind::{Given, Kind};
use super::layer::{given, printable};
use super::reader::{Reader, Setting};
use super::report::Problem;
use super::source::Source;
use super::suggest::nearest;

/// What one table says of one exchange.
pub(crate) struct SaidOfExchange {
    exchange: String,
    unroutable: (Given, Source),
}

/// AMQP carries names of exchanges as short strings.
const NAME_BYTES: usize = 255;

/// How the table of an exchange begins, as TOML.
pub(crate) fn heading(exchange: &str) -> String {
    let escaped = exchange.replace('\\', "\\\\").replace('"', "\\\"");
    format!("[{}.\"{escaped}\"]", keys::EXCHANGES)
}

/// A heading for a message: names that look odd may be something else, a URL with a password, say.
fn shown(exchange: &str) -> String {
    let plain = exchange.replace('.', "_");
    if plain.is_empty() || printable(&plain) == plain {
        heading(exchange)
    } else {
        format!("[{}.{}]", keys::EXCHANGES, printable(&plain))
    }
}

/// Reads the tables of all exchanges; every problem is added to `problems`. `at` finds the line of an
/// offset in the file.
pub(crate) fn read(
    content: &DeValue<'_>,
    source: Source,
    at: &impl Fn(usize) -> Source,
    problems: &mut Vec<Problem>,
) -> Vec<SaidOfExchange> {
    let DeValue::Table(exchanges) = content else {
        problems.push(not_a_table(source));
        return Vec::new();
    };
    let mut said = Vec::new();
    for (name, content) in exchanges {
        let source = at(name.span().start);
        let name = name.get_ref().as_ref();
        let DeValue::Table(table) = content.get_ref() else {
            problems.push(not_a_table(source));
            continue;
        };
        if let Err(message) = possible(name) {
            problems.push(Problem::with_key(source, shown(name), message));
            continue;
        }
        for (key, value) in table {
            let source = at(key.span().start);
            match key.get_ref().as_ref() {
                key if key == keys::EXCHANGE_UNROUTABLE.name.key => said.push(SaidOfExchange {
                    exchange: name.to_owned(),
                    unroutable: (given(value.get_ref()), source),
                }),
                key => problems.push(unknown_key(name, key, value.get_ref(), source)),
            }
        }
    }
    said
}

/// Whether an exchange can have this name.
fn possible(name: &str) -> Result<(), String> {
    if name.len() > NAME_BYTES {
        return Err(format!(
            "the exchange's name has {} bytes, at most {NAME_BYTES} are possible",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(
            "the exchange's name must not contain control characters or line breaks".to_owned(),
        );
    }
    // The metrics call it so, because an empty label counts as none.
    if name == "amq.default" {
        return Err(format!(
            "no exchange has this name: the default exchange is {}",
            heading("")
        ));
    }
    Ok(())
}

fn not_a_table(source: Source) -> Problem {
    Problem::at(
        source,
        format!(
            "`{}` holds a table for each exchange: write {}, with its keys under it",
            keys::EXCHANGES,
            heading("NAME")
        ),
    )
    .hint(format!(
        "for all exchanges: [{}] {}",
        keys::UNROUTABLE_POLICY.name.section,
        keys::UNROUTABLE_POLICY.name.key
    ))
}

fn unknown_key(exchange: &str, key: &str, value: &DeValue<'_>, source: Source) -> Problem {
    let known = keys::EXCHANGE_UNROUTABLE.name.key;
    let shown = shown(exchange);
    let message = match (nearest(key, [known]), value) {
        (Some(meant), _) => format!("unknown key; did you mean `{meant}`?"),
        (None, DeValue::Table(_)) => format!(
            "unknown key; a name with a dot needs quotes: {}",
            heading("with.dot")
        ),
        (None, _) => "unknown key".to_owned(),
    };
    Problem::with_key(source, format!("{shown} {}", printable(key)), message)
        .hint(format!("the keys of {shown} are {known}"))
}

/// The policy of every exchange that has one of its own; `None` when one of them is wrong, which is
/// then among the problems.
pub(crate) fn unroutable(reader: &mut Reader<'_>) -> Option<HashMap<String, UnroutablePolicy>> {
    let key = &keys::EXCHANGE_UNROUTABLE;
    let mut policies = HashMap::new();
    let mut wrong = false;
    for SaidOfExchange {
        exchange,
        unroutable: (given, source),
    } in reader.exchanges()
    {
        match key.kind.parse(given) {
            Ok(policy) => {
                reader.settings.push(Setting {
                    name: key.name,
                    exchange: Some(exchange.clone()),
                    value: key.kind.show(&policy),
                    source: source.clone(),
                });
                policies.insert(exchange.clone(), policy);
            }
            Err(message) => {
                let KeyName { key, .. } = key.name;
                let named = format!("{} {key}", shown(exchange));
                reader
                    .problems
                    .push(Problem::with_key(source.clone(), named, message));
                wrong = true;
            }
        }
    }
    (!wrong).then_some(policies)
}
