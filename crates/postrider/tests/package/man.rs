//! The manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{names, pages, postrider};

/// Every command that the help names, with its parents: `dead-letters list`.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut next = 0;
    while let Some(parents) = found.get(next).cloned() {
        next += 1;
        let mut arguments: Vec<&str> = parents.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = String::from_utf8(postrider(&arguments).stdout).unwrap();
        let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in listed.lines().take_while(|line| !line.is_empty()) {
            // Deeper lines go on with what a command does.
            let Some(name) = line
                .strip_prefix("  ")
                .filter(|rest| !rest.starts_with(' '))
            else {
                continue;
            };
            let name = name.split_whitespace().next().unwrap();
            if name != "help" {
                found.push([parents.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    found
}

#[test]
fn every_command_has_a_page_and_no_page_is_without_its_command() {
    let directory = pages();
    let mut expected: BTreeSet<String> = commands()
        .iter()
        .map(|command| {
            [&["postrider".to_owned()], command.as_slice()]
                .concat()
                .join("-")
        })
        .map(|name| format!("{name}.1"))
        .collect();
    assert!(expected.len() > 15, "{expected:?}");
    assert!(expected.contains("postrider-dead-letters-list.1"));
    expected.insert("postrider.toml.5".to_owned());
    let there: BTreeSet<String> = names(&directory.path().join("man")).into_iter().collect();
    assert_eq!(there, expected);
}

#[test]
fn the_pages_say_what_the_help_says_and_are_right_for_every_formatter_that_is_here() {
    let directory = pages();
    let run = fs::read_to_string(directory.path().join("man/postrider-run.1")).unwrap();
    for part in [
        ".SH EXAMPLES\n.nf\n",
        "SIGHUP",
        "\\-\\-migrate",
        "postrider.toml(5)",
    ] {
        assert!(run.contains(part), "{part:?} is not in\n{run}");
    }
    let printed = postrider(&["man"]).stdout;
    assert_eq!(
        printed,
        fs::read(directory.path().join("man/postrider.1")).unwrap()
    );

    let mut checked = 0;
    for name in names(&directory.path().join("man")) {
        let path = directory.path().join("man").join(&name);
        for (formatter, arguments) in [
            ("groff", &["-man", "-ww", "-Tutf8"][..]),
            ("mandoc", &["-Tlint", "-Wwarning"]),
        ] {
            let Ok(output) = Command::new(formatter).args(arguments).arg(&path).output() else {
                continue;
            };
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && said.is_empty(),
                "{formatter} {name}: {said}"
            );
            checked += 1;
        }
    }
    // scripts/prepare installs one of them.
    assert!(checked > 15, "neither groff nor mandoc is here");
}

#[test]
fn the_page_of_the_configuration_file_has_every_section_and_key_of_it() {
    let directory = pages();
    let page = fs::read_to_string(directory.path().join("man/postrider.toml.5")).unwrap();
    let page = page
        .replace("\\-", "-")
        .replace("\\&", "")
        .replace("\\\\", "\\");
    let file = postrider(&["config", "default"]).stdout;
    let file = String::from_utf8(file).unwrap();
    let mut keys = 0;
    for line in file.lines() {
        let code = line.trim_start_matches("# ");
        if code.starts_with('[') && code.ends_with(']') {
            assert!(
                page.contains(&format!(".SS {code}"))
                    || page.contains(&format!(".SS \"{}\"", code.replace('"', "\\(dq"))),
                "{code}"
            );
        } else if line.contains(" = ") && !line.starts_with("#") {
            assert!(page.contains(&format!("\\fB{line}\\fR\n")), "{line}");
            keys += 1;
        }
    }
    assert!(keys > 20, "{keys}");
    for optional in ["# url = ", "# retention = ", "# unroutable = "] {
        assert!(page.contains(&format!("\\fB{optional}")), "{optional}");
    }
}
