//! Secrets that stand in files of their own: `*_file` keys and systemd's credentials.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use secrecy::SecretString;

/// No URL or password is longer; whoever names `/dev/zero` shall hear of it.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads a secret, without the line break that editors and `echo` leave at its end.
///
/// The messages do not name the file: a password mistaken for a file name must not appear in them.
/// The key that names it does appear in front.
pub(crate) fn read(path: &Path) -> Result<SecretString, String> {
    let mut file = File::open(path).map_err(|error| explain(&error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(
            "the path is a directory: name the file in it that holds the secret".to_owned(),
        );
    }
    let mut bytes = Vec::new();
    file.by_ref()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| explain(&error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("the file is larger than {MAX_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "the file is not valid UTF-8".to_owned())?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if secret.contains(['\n', '\r']) {
        return Err("the file holds more than one line".to_owned());
    }
    Ok(SecretString::from(secret))
}

fn explain(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "the file it names does not exist".to_owned(),
        ErrorKind::PermissionDenied => {
            "the file it names cannot be read by the user this runs as (permission denied)"
                .to_owned()
        }
        _ => format!("the file it names cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn read_text(text: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, text).unwrap();
        read(&path).map(|secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn a_trailing_line_break_is_not_part_of_the_secret() {
        assert_eq!(read_text(b"hunter2\n").unwrap(), "hunter2");
        assert_eq!(read_text(b"hunter2\r\n").unwrap(), "hunter2");
        assert_eq!(read_text(b" hunter2 ").unwrap(), " hunter2 ");
    }

    #[test]
    fn a_file_that_cannot_be_a_secret_is_refused_with_the_reason() {
        assert!(read_text(b"\n").unwrap_err().contains("empty"));
        assert!(
            read_text(b"a\nb\n")
                .unwrap_err()
                .contains("more than one line")
        );
        assert!(read_text(b"\xff").unwrap_err().contains("UTF-8"));
        assert!(
            read_text(&vec![b'x'; 70_000])
                .unwrap_err()
                .contains("larger")
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().contains("directory"));
        assert!(
            read(&dir.path().join("none"))
                .unwrap_err()
                .contains("does not exist")
        );
    }
}
