//! Passwords that stand in the configuration file itself.

use super::authority::has_password;
use super::keys;
use super::kind::Given;
use super::permissions::open_to_everybody;
use super::reader::Reader;
use super::source::Source;

/// Warns where one does and the file is open to others than its owner and its group, in one line for all of them. What the
/// environment overrides can be read there as well.
pub(crate) fn warn_of_readers(reader: &mut Reader<'_>) {
    let mut with_password = Vec::new();
    let mut file = None;
    for name in [
        keys::DATABASE_URL.name,
        keys::BROKER_URL.name,
        keys::BROKER_URLS.name,
    ] {
        if let Some((given, Source::File { path, .. })) = reader.in_file(name)
            && holds_password(given)
        {
            with_password.push(name.to_string());
            file = Some(path);
        }
    }
    if let Some(open) = file.and_then(|path| open_to_everybody(path)) {
        // Not chmod alone: under systemd's DynamicUser= nobody but others can read the file.
        reader.warnings.push(format!(
            "the password in {}: {open}: keep it in a file of its own (url_file, password_file) or in a credential of systemd, \
             or chmod o-rwx where the relay runs as the file's owner or in its group",
            with_password.join(" and ")
        ));
    }
}

fn holds_password(given: &Given) -> bool {
    match given {
        Given::Text(url) | Given::Variable(url) => has_password(url),
        Given::List(urls) => urls.iter().any(holds_password),
        Given::Integer(_) | Given::Float(_) | Given::Boolean(_) | Given::Other(_) => false,
    }
}
