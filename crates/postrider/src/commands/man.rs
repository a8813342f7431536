//! `man`: manual pages, made from the command line and from the commented configuration file, so that they say what
//! the program does.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::cli::Cli;
use crate::config::{DEFAULT_FILE, DEFAULT_PATH, keys};

/// The page of the configuration file.
const FILE_PAGE: &str = "postrider.toml";
/// What the pages are together.
const MANUAL: &str = "Postrider";

/// Prints the page of the program, or writes all pages into `directory`, which is made if it is not there.
///
/// # Errors
/// When writing failed.
pub(crate) fn man(directory: Option<&Path>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(directory) = directory else {
        out.write_all(&page(&program, None)?)?;
        return Ok(());
    };
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut pages = vec![(format!("{FILE_PAGE}.5"), file_page()?)];
    pages_of(&program, None, &mut pages)?;
    for (name, page) in pages {
        let path = directory.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn pages_of(
    command: &clap::Command,
    parent: Option<&str>,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> anyhow::Result<()> {
    let name = name_of(command);
    pages.push((format!("{name}.1"), page(command, parent)?));
    for command in visible(command) {
        pages_of(command, Some(name), pages)?;
    }
    Ok(())
}

fn visible(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
}

/// `postrider-dead-letters-list`
fn name_of(command: &clap::Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

fn page(command: &clap::Command, parent: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let parts = Man::new(command.clone())
        .title(name_of(command))
        .source(concat!("postrider ", env!("CARGO_PKG_VERSION")))
        .manual(MANUAL);
    parts.render_title(&mut page)?;
    parts.render_name_section(&mut page)?;
    parts.render_synopsis_section(&mut page)?;

    let mut roff = Roff::default();
    roff.control("SH", ["DESCRIPTION"]);
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let (notes, examples) = after_help(command);
    paragraphs(&mut roff, &format!("{about}\n\n{notes}"));
    roff.to_writer(&mut page)?;

    parts.render_options_section(&mut page)?;
    if visible(command).next().is_some() {
        parts.render_subcommands_section(&mut page)?;
    }

    let mut roff = Roff::default();
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        verbatim(&mut roff, &examples);
    }
    roff.control("SH", ["SEE ALSO"]);
    let pages = visible(command).map(name_of).chain(parent);
    let mut see: Vec<_> = pages.map(|name| format!("{name}(1)")).collect();
    see.push(format!("{FILE_PAGE}(5)"));
    roff.text([roman(see.join(", "))]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// What stands below the help: the paragraphs, and the examples without their heading.
fn after_help(command: &clap::Command) -> (String, Vec<String>) {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let (examples, notes): (Vec<_>, Vec<_>) = help
        .lines()
        .filter(|line| *line != "Examples:")
        .partition(|line| line.starts_with("  "));
    let examples = examples
        .iter()
        .map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned())
        .collect();
    (notes.join("\n"), examples)
}

/// An empty line begins a paragraph, every other one a line.
fn paragraphs(roff: &mut Roff, text: &str) {
    let mut begun = false;
    for line in text.trim().lines() {
        if line.trim().is_empty() {
            if begun {
                roff.control("PP", []);
            }
            begun = false;
        } else {
            if begun {
                roff.control("br", []);
            }
            roff.text(quoted_in_bold(line));
            begun = true;
        }
    }
}

fn verbatim(roff: &mut Roff, lines: &[String]) {
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line.as_str())]);
    }
    roff.control("fi", []);
}

/// What stands between backticks is what is typed.
fn quoted_in_bold(text: &str) -> Vec<Inline> {
    if text.matches('`').count() % 2 == 1 {
        return vec![roman(text)];
    }
    text.split('`')
        .enumerate()
        .filter(|(_, part)| !part.is_empty())
        .map(|(place, part)| match place % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}

/// The commented file as a page: each key with what stands above it.
fn file_page() -> anyhow::Result<Vec<u8>> {
    let mut roff = Roff::default();
    let source = concat!("postrider ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [FILE_PAGE, "5", "", source, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!(
        "{FILE_PAGE} - the configuration of postrider"
    ))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([roman(DEFAULT_PATH)]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut section = String::new();
    let mut said: Vec<&str> = Vec::new();
    for line in DEFAULT_FILE.lines() {
        let text = line
            .strip_prefix('#')
            .map(|text| text.strip_prefix(' ').unwrap_or(text));
        let code = text.unwrap_or(line);
        if let Some(heading) = heading(code) {
            filled(&mut roff, &mut said);
            if section.is_empty() {
                roff.control("SH", ["KEYS"]);
            }
            roff.control("SS", [code]);
            section = heading.to_owned();
        } else if is_key(&section, code) {
            roff.control("TP", []);
            roff.text([bold(line)]);
            filled(&mut roff, &mut said);
        } else {
            match text {
                Some(text) => said.push(text),
                None if line.is_empty() => filled(&mut roff, &mut said),
                None => said.push(line),
            }
        }
    }
    filled(&mut roff, &mut said);
    roff.control("SH", ["FILES"]);
    roff.text([roman(format!(
        "{DEFAULT_PATH}, or the file that --config or POSTRIDER_CONFIG names"
    ))]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "postrider(1), postrider-check-config(1), postrider-config-show(1)",
    )]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// The section that begins with this line; that of single exchanges stands behind a comment sign.
fn heading(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.strip_suffix(']')?;
    if name.starts_with(keys::EXCHANGES) {
        return Some(keys::EXCHANGES);
    }
    keys::sections().contains(&name).then_some(name)
}

fn is_key(section: &str, line: &str) -> bool {
    let Some((key, _)) = line.split_once(" = ") else {
        return false;
    };
    match section {
        keys::EXCHANGES => key == keys::EXCHANGE_UNROUTABLE.name.key,
        _ => keys::keys_of(section).contains(&key),
    }
}

/// Lines that were broken to fit the file are one text here; an empty one begins a paragraph.
fn filled(roff: &mut Roff, said: &mut Vec<&str>) {
    let mut begun = false;
    let text = std::mem::take(said);
    for paragraph in text.split(|line| line.trim().is_empty()) {
        if paragraph.is_empty() {
            continue;
        }
        if begun {
            roff.control("PP", []);
        }
        roff.text(quoted_in_bold(&paragraph.join(" ")));
        begun = true;
    }
    if begun && !text.is_empty() {
        roff.control("PP", []);
    }
}
