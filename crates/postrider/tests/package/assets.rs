//! The list of files in the Debian package, in `Cargo.toml`.

use std::fs;
use std::path::Path;

use crate::{names, pages, repository};

/// What cargo-deb reads.
fn package() -> toml::Value {
    let manifest: toml::Table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .unwrap()
            .parse()
            .unwrap();
    manifest["package"]["metadata"]["deb"].clone()
}

/// Source, destination and mode of each; sources from the repository's root.
fn assets() -> Vec<[String; 3]> {
    package()["assets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|asset| [0, 1, 2].map(|part| asset[part].as_str().unwrap().to_owned()))
        .map(|[source, destination, mode]| {
            let source = source.strip_prefix("../../").unwrap_or(&source).to_owned();
            [source, destination, mode]
        })
        .collect()
}

/// Whether a name is meant by a pattern with one `*` at most.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((begin, end)) => {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        }
    }
}

#[test]
fn every_file_of_the_package_is_in_the_repository_or_made_by_the_program() {
    let directory = pages();
    let pages = names(&directory.path().join("man"));
    let script = fs::read_to_string(repository().join("scripts/build-package")).unwrap();
    for [source, ..] in assets() {
        let (parent, pattern) = source.rsplit_once('/').unwrap_or(("", &source));
        let there = match parent {
            "target/release" => pattern == "postrider",
            "target/package/man" => pages.iter().any(|page| matches(pattern, page)),
            "target/package/completions" => {
                let shell = pattern.strip_prefix("postrider.").unwrap();
                let shells = script
                    .lines()
                    .find_map(|line| line.strip_prefix("for shell in "));
                shells
                    .unwrap()
                    .split([' ', ';'])
                    .any(|known| known == shell)
            }
            _ => names(&repository().join(parent))
                .iter()
                .any(|name| matches(pattern, name)),
        };
        assert!(there, "{source}");
    }
    for page in pages {
        let packed = assets().iter().any(|[source, ..]| {
            source
                .strip_prefix("target/package/man/")
                .is_some_and(|pattern| matches(pattern, &page))
        });
        assert!(packed, "{page} is not in the package");
    }
}

#[test]
fn the_package_puts_each_thing_where_its_reader_looks_for_it_and_only_the_program_can_be_executed()
{
    for [source, destination, mode] in assets() {
        let executable = destination == "usr/bin/";
        assert_eq!(executable, source == "target/release/postrider", "{source}");
        assert_eq!(mode, if executable { "755" } else { "644" }, "{source}");
    }
    let unit = fs::read_to_string(repository().join("deploy/systemd/postrider.service")).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/postrider run\n"));
    let file = assets()
        .into_iter()
        .find(|[_, destination, _]| destination == "etc/postrider/");
    assert_eq!(file.unwrap()[0], "config/postrider.toml");
}

#[test]
fn every_picture_that_a_page_of_the_package_shows_is_beside_it_as_in_the_repository() {
    let mut shown = 0;
    for page in names(&repository().join("docs")) {
        if !page.ends_with(".md") {
            continue;
        }
        let text = fs::read_to_string(repository().join("docs").join(&page)).unwrap();
        for picture in text.split("![").skip(1) {
            let (_, rest) = picture.split_once("](").unwrap();
            let (link, _) = rest.split_once(')').unwrap();
            let (directory, _) = link.rsplit_once('/').unwrap();
            let packed = assets().iter().any(|[source, destination, _]| {
                matches(source, &format!("docs/{link}"))
                    && *destination == format!("usr/share/doc/postrider/docs/{directory}/")
            });
            assert!(packed, "{page} shows {link}");
            assert!(repository().join("docs").join(link).is_file(), "{link}");
            shown += 1;
        }
    }
    assert!(shown > 0);
}

/// cargo-deb leaves the unit's scripts out, without a word, where no directory for scripts is named. `make test-package` looks at what they do.
#[test]
fn the_package_has_scripts_for_the_unit_which_start_nothing_but_what_an_upgrade_found_at_work() {
    let package = package();
    let scripts = package["maintainer-scripts"].as_str().unwrap();
    assert!(
        Path::new(env!("CARGO_MANIFEST_DIR")).join(scripts).is_dir(),
        "{scripts}"
    );
    let units = &package["systemd-units"];
    let flag = |name: &str| units[name].as_bool().unwrap();
    assert!(!flag("enable") && !flag("start") && flag("restart-after-upgrade"));
}

#[test]
fn the_pages_that_the_unit_names_are_in_the_package() {
    let unit = fs::read_to_string(repository().join("deploy/systemd/postrider.service")).unwrap();
    let named = unit
        .lines()
        .find_map(|line| line.strip_prefix("Documentation="))
        .unwrap();
    let directory = pages();
    let pages = names(&directory.path().join("man"));
    let mut checked = 0;
    for page in named
        .split(' ')
        .filter_map(|link| link.strip_prefix("man:"))
    {
        let (name, section) = page.strip_suffix(')').unwrap().split_once('(').unwrap();
        assert!(pages.contains(&format!("{name}.{section}")), "{page}");
        checked += 1;
    }
    assert_eq!(checked, 2);
}
