//! What the file and the environment say, before anything is made of it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::exchanges::{self, SaidOfExchange};
use super::keys::{self, KeyName};
use super::kind::Given;
use super::report::Problem;
use super::source::Source;
use super::suggest::nearest;

/// What one place says about the keys.
#[derive(Default)]
pub(crate) struct Layer {
    given: HashMap<KeyName, (Given, Source)>,
    /// What is said about single exchanges; only a file can.
    pub(crate) exchanges: Vec<SaidOfExchange>,
}

impl Layer {
    /// What was said about a key, and where.
    pub(crate) fn get(&self, name: KeyName) -> Option<&(Given, Source)> {
        self.given.get(&name)
    }
}

/// Reads the text of a configuration file; every problem is added to `problems`.
pub(crate) fn from_toml(text: &str, path: &Path, problems: &mut Vec<Problem>) -> Layer {
    let at = |offset: usize| Source::File {
        path: path.to_owned(),
        line: line_of(text, offset),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // Nothing is made of the rest: where a quote is missing, half a password may look like the
        // name of a key. For the same reason only the parser's message is used, never its Display,
        // which prints the line.
        let mut seen = None;
        for error in errors {
            let source = at(error.span().map_or(0, |span| span.start));
            if seen.as_ref() != Some(&source) {
                problems.push(
                    Problem::at(source.clone(), format!("TOML syntax error: {}", error.message()))
                        .hint("(the line is not shown, it may hold a secret; nothing else in the file was checked)"),
                );
            }
            seen = Some(source);
        }
        return Layer::default();
    }

    let mut layer = Layer::default();
    for (section, content) in document.get_ref() {
        let name = section.get_ref().as_ref();
        let source = at(section.span().start);
        if name == keys::EXCHANGES {
            layer.exchanges = exchanges::read(content.get_ref(), source, &at, problems);
            continue;
        }
        let known = keys::keys_of(name);
        if known.is_empty() {
            problems.push(unknown_section(name, source));
            continue;
        }
        let DeValue::Table(table) = content.get_ref() else {
            problems.push(Problem::at(
                source,
                format!("`{name}` is a section: write [{name}] once, with its keys under it"),
            ));
            continue;
        };
        keys_of_table(name, table, &at, &mut layer, problems);
    }
    layer
}

/// Reads a section; a table in it may be a section of its own: `tls` of `[database]` is `[database.tls]`.
fn keys_of_table(
    section: &str,
    table: &DeTable<'_>,
    at: &dyn Fn(usize) -> Source,
    layer: &mut Layer,
    problems: &mut Vec<Problem>,
) {
    let known = keys::keys_of(section);
    for (key, value) in table {
        let source = at(key.span().start);
        let key = key.get_ref().as_ref();
        if let Some(found) = find(section, key) {
            layer.given.insert(found, (given(value.get_ref()), source));
            continue;
        }
        let inner = format!("{section}.{key}");
        match value.get_ref() {
            DeValue::Table(table) if !keys::keys_of(&inner).is_empty() => {
                keys_of_table(&inner, table, at, layer, problems);
            }
            _ if !keys::keys_of(&inner).is_empty() => problems.push(Problem::at(
                source,
                format!("`{key}` is a section: write [{inner}] once, with its keys under it"),
            )),
            _ => problems.push(unknown_key(section, key, &known, source)),
        }
    }
}

fn find(section: &str, key: &str) -> Option<KeyName> {
    keys::ALL
        .iter()
        .map(|known| known.name())
        .find(|known| known.section == section && known.key == key)
}

/// A name from the file for a message, unless it is so odd that it may be something else: a URL, say.
pub(crate) fn printable(name: &str) -> &str {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.len() <= 40 && name.bytes().all(plain) {
        name
    } else {
        "(a name not shown here)"
    }
}

fn unknown_section(name: &str, source: Source) -> Problem {
    let mut sections = keys::sections();
    sections.push(keys::EXCHANGES);
    let shown = printable(name);
    let elsewhere = keys::ALL.iter().find(|key| key.name().key == name);
    let message = match (nearest(name, sections.iter().copied()), elsewhere) {
        (Some(meant), _) => format!("unknown section [{shown}]; did you mean [{meant}]?"),
        (None, Some(key)) => format!(
            "`{name}` stands outside its section: it belongs under [{}]",
            key.name().section
        ),
        (None, None) => format!("unknown section [{shown}]"),
    };
    let sections: Vec<_> = sections
        .iter()
        .map(|name| match *name {
            keys::EXCHANGES => exchanges::heading("NAME"),
            name => format!("[{name}]"),
        })
        .collect();
    Problem::at(source, message).hint(format!("the sections are {}", sections.join(", ")))
}

fn unknown_key(section: &str, key: &str, known: &[&'static str], source: Source) -> Problem {
    // Of several sections with such a key, one within this section is meant.
    let elsewhere = keys::ALL
        .iter()
        .map(|known| known.name())
        .filter(|known| known.key == key)
        .max_by_key(|known| known.section.starts_with(section));
    let message = match (nearest(key, known.iter().copied()), elsewhere) {
        (Some(meant), _) => format!("unknown key; did you mean `{meant}`?"),
        (None, Some(other)) => format!("unknown key; it belongs under [{}]", other.section),
        (None, None) => "unknown key".to_owned(),
    };
    Problem::with_key(source, format!("[{section}] {}", printable(key)), message)
        .hint(format!("the keys of [{section}] are {}", known.join(", ")))
}

pub(crate) fn given(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Given::Other("an integer too large to read"), Given::Integer),
        DeValue::Boolean(on) => Given::Boolean(*on),
        DeValue::Array(items) => {
            Given::List(items.iter().map(|item| given(item.get_ref())).collect())
        }
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Given::Other("a float that cannot be read"), Given::Float),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Table(_) => Given::Other("a table"),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Names of this program's variables that stand for no key.
const OTHER_VARIABLES: &[&str] = &["POSTRIDER_CONFIG"];

/// Reads the environment. Unknown `POSTRIDER_` names are only warned about, in one line, because a
/// Kubernetes Service called `postrider` injects `POSTRIDER_PORT` and half a dozen more into every pod.
pub(crate) fn from_environment(
    environment: &[(OsString, OsString)],
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Layer {
    let mut layer = Layer::default();
    let mut unknown = Vec::new();
    let variables: Vec<_> = keys::ALL
        .iter()
        .map(|key| (key.name().variable(), key.name()))
        .collect();
    for (variable, value) in environment {
        let Some(variable) = variable.to_str() else {
            continue;
        };
        if !variable.starts_with("POSTRIDER_") || OTHER_VARIABLES.contains(&variable) {
            continue;
        }
        let Some((_, name)) = variables.iter().find(|(known, _)| known == variable) else {
            unknown.push(variable);
            continue;
        };
        let source = Source::Env(variable.to_owned());
        match value.to_str() {
            // Compose files and unit files pass on variables that are not set as empty ones.
            Some("") => {}
            Some(value) => {
                layer
                    .given
                    .insert(*name, (Given::Variable(value.to_owned()), source));
            }
            None => problems.push(Problem::at(source, "is not valid UTF-8")),
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        let named: Vec<_> = unknown
            .into_iter()
            .map(|name| {
                match nearest(name, variables.iter().map(|(known, _)| known.as_str()))
                    .filter(|meant| close_variables(name, meant))
                {
                    Some(meant) => format!("{name} (did you mean {meant}?)"),
                    None => name.to_owned(),
                }
            })
            .collect();
        warnings.push(format!(
            "environment variables that mean nothing here are ignored: {}",
            named.join(", ")
        ));
    }
    layer
}

/// The shared prefix makes any two variables look alike: judge them by what follows it.
fn close_variables(name: &str, meant: &str) -> bool {
    let rest = |variable: &str| variable.trim_start_matches("POSTRIDER_").to_owned();
    nearest(&rest(name), [rest(meant).as_str()]).is_some()
}
