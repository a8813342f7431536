//! The list of files in the Debian package, in `Cargo.toml`.

use std::fs;
use std::path::{Component, Path};

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

/// A path within the repository, without `.` and `..`.
fn normal(path: &Path) -> String {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(part) => parts.push(part.to_str().unwrap()),
            _ => {}
        }
    }
    parts.join("/")
}

/// Whether a file of the repository, or one of a directory, is in the package where a link from the packaged pages finds it.
fn is_packed(path: &str) -> bool {
    assets().iter().any(|[source, destination, _]| {
        let Some(kept) = destination.strip_prefix("usr/share/doc/postrider/") else {
            return false;
        };
        let (directory, _) = source.rsplit_once('/').unwrap_or_default();
        let mirrored = kept.trim_end_matches('/') == directory;
        let beside = path.rsplit_once('/').unwrap_or_default().0 == directory;
        mirrored
            && (beside && matches(source, path)
                || directory == path
                || directory.starts_with(&format!("{path}/")))
    })
}

/// But for links to the source, which no package holds.
#[test]
fn every_link_and_picture_of_a_page_in_the_package_leads_to_what_is_there_too() {
    let mut followed = 0;
    let pages = ["", "docs", "docs/adr", "deploy"]
        .iter()
        .flat_map(|directory| {
            let pages = names(&repository().join(directory));
            let pages = pages.into_iter().filter(|page| page.ends_with(".md"));
            pages.map(|page| Path::new(directory).join(page))
        });
    for page in pages {
        assert!(is_packed(&normal(&page)), "{}", page.display());
        let text = fs::read_to_string(repository().join(&page)).unwrap();
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap();
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            if file.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let file = normal(&page.parent().unwrap().join(file));
            assert!(
                repository().join(&file).exists(),
                "{}: {link}",
                page.display()
            );
            let is_source = file.starts_with("crates/") || file == "deny.toml";
            assert!(is_source || is_packed(&file), "{}: {link}", page.display());
            followed += 1;
        }
    }
    assert!(followed > 100, "{followed}");
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
