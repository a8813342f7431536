//! `deploy/Dockerfile`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::files::{read, repository};
use crate::program::{assert_accepted, assert_command, default_port, postrider};

/// The instructions of the Dockerfile with their arguments, continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let text: String = read("deploy/Dockerfile")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect();
    text.replace("\\\n", " ")
        .lines()
        .map(|line| {
            let (name, arguments) = line.split_once(' ').unwrap();
            (name.to_owned(), arguments.trim().to_owned())
        })
        .collect()
}

fn arguments<'a>(instructions: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    instructions
        .iter()
        .filter(|(instruction, _)| instruction == name)
        .map(|(_, arguments)| arguments.as_str())
        .collect()
}

/// The instructions of the last stage: the image of the daemon.
fn image() -> Vec<(String, String)> {
    let all = instructions();
    let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    all[last..].to_vec()
}

/// The instructions from one `FROM` to the next.
fn stages() -> Vec<Vec<(String, String)>> {
    let mut stages: Vec<Vec<(String, String)>> = Vec::new();
    for instruction in instructions() {
        if instruction.0 == "FROM" {
            stages.push(Vec::new());
        }
        if let Some(stage) = stages.last_mut() {
            stage.push(instruction);
        }
    }
    stages
}

pub(crate) fn stage_names() -> Vec<String> {
    let all = instructions();
    arguments(&all, "FROM")
        .iter()
        .filter_map(|from| from.split_once(" AS "))
        .map(|(_, name)| name.to_owned())
        .collect()
}

pub(crate) fn build_arguments() -> Vec<String> {
    let all = instructions();
    arguments(&all, "ARG")
        .iter()
        .map(|argument| argument.split('=').next().unwrap().to_owned())
        .collect()
}

fn quoted(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn the_image_configures_the_daemon_with_variables_it_knows() {
    let image = image();
    let settings = arguments(&image, "ENV");
    let mut variables: Vec<(&str, &str)> = settings
        .iter()
        .map(|setting| setting.split_once('=').unwrap())
        .collect();
    variables.push(("POSTRIDER_DATABASE_URL", "postgres://app@127.0.0.1/shop"));
    variables.push(("POSTRIDER_BROKER_URL", "amqp://127.0.0.1"));
    assert_accepted(&postrider(&["check-config"], variables));
}

#[test]
fn a_container_serves_http_to_the_outside_on_the_default_port() {
    let (image, port) = (image(), default_port());
    assert_eq!(
        arguments(&image, "ENV"),
        [format!("POSTRIDER_HTTP_LISTEN=0.0.0.0:{port}")]
    );
    assert_eq!(arguments(&image, "EXPOSE"), [port.to_string()]);
}

#[test]
fn a_container_starts_and_checks_itself_with_commands_that_exist() {
    let image = image();
    assert_eq!(
        quoted(arguments(&image, "ENTRYPOINT")[0]),
        ["/usr/bin/postrider"]
    );
    assert_command(&quoted(arguments(&image, "CMD")[0]));
    let check = arguments(&image, "HEALTHCHECK")[0];
    let (_, check) = check.split_once("CMD ").unwrap();
    let check = quoted(check);
    assert_eq!(check[0], "/usr/bin/postrider");
    assert_command(&check[1..]);
    assert_eq!(arguments(&image, "STOPSIGNAL"), ["SIGTERM"]);
}

#[test]
fn an_image_holds_nothing_but_its_program_and_runs_as_nobody_by_number() {
    let mut images = 0;
    for stage in stages() {
        let from = arguments(&stage, "FROM")[0];
        if !from.starts_with("scratch") {
            continue;
        }
        images += 1;
        // No shell, no package manager: nothing can be run while it is built, either.
        assert!(arguments(&stage, "RUN").is_empty(), "{from}");
        assert_eq!(arguments(&stage, "COPY").len(), 1, "{from}");
        assert_eq!(arguments(&stage, "USER"), ["65532:65532"], "{from}");
    }
    assert_eq!(images, 2);
    assert_eq!(arguments(&image(), "FROM"), ["scratch"]);
}

#[test]
fn the_image_is_built_from_files_that_exist_and_are_sent_to_the_builder() {
    let ignore = read(".dockerignore");
    let ignore: Vec<&str> = ignore.lines().collect();
    assert!(ignore.contains(&"*"));
    let all = instructions();
    for copy in arguments(&all, "COPY") {
        if copy.starts_with("--from=") {
            continue;
        }
        let mut sources: Vec<&str> = copy.split(' ').collect();
        sources.pop();
        for source in sources {
            assert!(repository().join(source).exists(), "{source}");
            assert!(ignore.contains(&format!("!{source}").as_str()), "{source}");
        }
    }
}

#[test]
fn the_image_is_built_with_the_oldest_rust_that_is_supported() {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let oldest = workspace["workspace"]["package"]["rust-version"]
        .as_str()
        .unwrap();
    let all = instructions();
    let from = arguments(&all, "FROM");
    assert!(from[0].starts_with(&format!("rust:{oldest}.")), "{from:?}");
}

#[test]
fn the_image_knows_the_commit_it_was_built_from() {
    let build_script =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs")).unwrap();
    for name in build_arguments() {
        assert!(build_script.contains(&format!("\"{name}\"")), "{name}");
    }
}

#[test]
fn what_the_image_is_made_from_names_its_version() {
    let names = stage_names();
    let all = instructions();
    for from in arguments(&all, "FROM") {
        let from = from.split(' ').next().unwrap();
        if from == "scratch" || names.iter().any(|name| name == from) {
            continue;
        }
        let tag = from.split_once(':').map(|(_, tag)| tag);
        assert!(
            tag.is_some_and(|tag| tag.starts_with(|first: char| first.is_ascii_digit())),
            "{from}"
        );
    }
}

/// Runs the program of such a root directory as the user of the image.
fn run_inside(root: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let id = Command::new("id").arg("--user").output().unwrap();
    let mut command = if id.stdout == b"0\n" {
        let mut chroot = Command::new("chroot");
        chroot.arg("--userspec=65532:65532");
        chroot
    } else {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "chroot"]);
        unshare
    };
    command
        .arg(root)
        .arg("/usr/bin/postrider")
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn the_program_runs_in_what_the_image_consists_of() {
    let root = tempfile::tempdir().unwrap();
    let made = Command::new(repository().join("deploy/image-root"))
        .arg(env!("CARGO_BIN_EXE_postrider"))
        .arg(root.path().join("image"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let image = root.path().join("image");
    // Made for this user alone, and the program runs as another.
    let opened = Command::new("chmod")
        .args(["755".as_ref(), root.path()])
        .status()
        .unwrap();
    assert!(opened.success());
    assert!(!image.join("bin/sh").exists());

    let version = run_inside(&image, &["--version"], &[]);
    assert!(version.status.success(), "{version:?}");
    let variables = [
        ("POSTRIDER_DATABASE_URL", "postgres://app@127.0.0.1/shop"),
        ("POSTRIDER_BROKER_URL", "amqp://127.0.0.1"),
        ("POSTRIDER_HTTP_LISTEN", "127.0.0.1:1"),
    ];
    assert_accepted(&run_inside(&image, &["check-config"], &variables));
    let unhealthy = run_inside(&image, &["health"], &variables);
    assert_eq!(unhealthy.status.code(), Some(1), "{unhealthy:?}");
    let complaint = String::from_utf8_lossy(&unhealthy.stderr);
    assert!(complaint.contains("no relay answers"), "{complaint}");
    for file in ["etc/ssl/certs/ca-certificates.crt", "etc/nsswitch.conf"] {
        assert!(image.join(file).exists(), "{file}");
    }
}
