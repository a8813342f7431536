//! A PostgreSQL whose disk is full, on a machine whose disk is not.
//!
//! Instead of a small file system, which only root may mount, files of the server are replaced by links to
//! `/dev/full`: every write to them fails with ENOSPC, said by the kernel itself. What the server makes of that is
//! what it makes of a full disk.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::postgres::PostgresServer;

const FULL: &str = "/dev/full";

/// How many segments of the write-ahead log find no room. The server skips to a later one when it keeps an old one
/// for use again; it never skips so many.
const SEGMENTS: u64 = 64;

/// Segments in one "logical log file", of 4 GB: 16 MB each.
const SEGMENTS_PER_FILE: u64 = 256;

/// The part of a server's files that has no room, until it is freed. Dropped, it stays full.
#[derive(Debug)]
#[must_use = "the disk stays full until it is freed"]
pub struct FullDisk {
    links: Vec<PathBuf>,
    /// Where a file was, and where it is meanwhile.
    aside: Option<(PathBuf, PathBuf)>,
}

impl FullDisk {
    /// There is room again. A server that has a file open does not notice before it opens it anew.
    ///
    /// # Errors
    /// The files are not as they were left.
    pub fn free(self) -> Result<()> {
        for link in &self.links {
            fs::remove_file(link)
                .with_context(|| format!("could not remove {}", link.display()))?;
        }
        if let Some((place, aside)) = &self.aside {
            fs::rename(aside, place)?;
        }
        Ok(())
    }
}

impl PostgresServer {
    /// No room for the write-ahead log any more: the next commit finds it full. The server then panics, finds no room
    /// for its recovery either, and is down until the disk is freed: it tries again and again, or ends and has to be
    /// started again.
    ///
    /// # Errors
    /// The server is not there, or belongs to another process.
    pub async fn fill_log_disk(&self) -> Result<FullDisk> {
        self.ensure_own()?;
        let client = self.client("postgres").await?;
        // A segment to itself: until it is left, 16 MB later, nobody touches those after it.
        client
            .batch_execute("SELECT pg_logical_emit_message(false, 'testbed', 'x'), pg_switch_wal()")
            .await?;
        let current: String = client
            .query_one("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[])
            .await?
            .get(0);
        let log = self.data_dir().join("pg_wal");
        let mut links = Vec::new();
        for segment in following(&current, SEGMENTS)? {
            let link = log.join(segment);
            // One that was kept for use again: empty.
            let _ = fs::remove_file(&link);
            symlink(FULL, &link)?;
            links.push(link);
        }
        // The segment is left, and what comes next has no room. The server may be gone before it answers.
        let _ = client
            .batch_execute("SELECT pg_logical_emit_message(false, 'testbed', 'x'), pg_switch_wal()")
            .await;
        Ok(FullDisk { links, aside: None })
    }

    /// No room for the rows of an empty table: `path` is its `pg_relation_filepath`. The server must not run: it would
    /// have the file open.
    ///
    /// # Errors
    /// The server runs or belongs to another process, or the table was never empty.
    pub fn fill_disk_of_table(&self, path: &str) -> Result<FullDisk> {
        self.ensure_own()?;
        ensure!(!self.is_running(), "the server has the file open");
        let place = self.data_dir().join(path);
        ensure!(
            fs::metadata(&place)?.len() == 0,
            "{} holds rows",
            place.display()
        );
        let aside = place.with_extension("aside");
        fs::rename(&place, &aside)?;
        symlink(Path::new(FULL), &place)?;
        Ok(FullDisk {
            links: vec![place.clone()],
            aside: Some((place, aside)),
        })
    }
}

/// The names of the segments after this one, on its time line.
fn following(segment: &str, count: u64) -> Result<Vec<String>> {
    ensure!(segment.len() == 24, "{segment} is no segment");
    let (timeline, rest) = segment.split_at(8);
    let (file, part) = rest.split_at(8);
    let number =
        u64::from_str_radix(file, 16)? * SEGMENTS_PER_FILE + u64::from_str_radix(part, 16)?;
    Ok((number + 1..=number + count)
        .map(|number| {
            format!(
                "{timeline}{:08X}{:08X}",
                number / SEGMENTS_PER_FILE,
                number % SEGMENTS_PER_FILE
            )
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::following;

    #[test]
    fn segments_are_counted_across_files() {
        assert_eq!(
            following("0000000100000000000000FE", 3).unwrap(),
            [
                "0000000100000000000000FF",
                "000000010000000100000000",
                "000000010000000100000001"
            ]
        );
    }
}
