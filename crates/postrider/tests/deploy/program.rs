//! The program that the files run, and what it says of them.

use std::process::{Command, Output};

use crate::files::read;

pub(crate) fn postrider<'a>(
    arguments: &[&str],
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postrider"))
        .args(arguments)
        .env_clear()
        .envs(variables)
        .output()
        .unwrap()
}

/// That the program has nothing to say against its configuration, not even a warning.
pub(crate) fn assert_accepted(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
}

/// That this is a command line of the program.
pub(crate) fn assert_command<S: AsRef<str>>(command: &[S]) {
    let mut arguments: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
    assert!(!arguments.is_empty());
    arguments.push("--help");
    let output = postrider(&arguments, []);
    assert!(output.status.success(), "{arguments:?}");
}

/// The default of a duration in the documented configuration.
pub(crate) fn default_seconds(section: &str, key: &str) -> u64 {
    let config: toml::Table = read("config/postrider.toml").parse().unwrap();
    seconds(config[section][key].as_str().unwrap())
}

pub(crate) fn default_port() -> u16 {
    let config: toml::Table = read("config/postrider.toml").parse().unwrap();
    let listen = config["http"]["listen"].as_str().unwrap();
    listen.rsplit(':').next().unwrap().parse().unwrap()
}

pub(crate) fn seconds(text: &str) -> u64 {
    text.strip_suffix('s')
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text} is no number of seconds"))
}
