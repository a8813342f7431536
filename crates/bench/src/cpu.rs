//! CPU time of processes, as the kernel counts it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// How often processes that end while they are looked at are looked at again.
const LOOKS: u32 = 100;

/// Seconds of CPU time used by the parties of a measurement so far, or microseconds for one message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct CpuTimes {
    /// The daemon, or this program while it is the publisher.
    pub(crate) publisher: f64,
    /// The postmaster and all backends.
    pub(crate) postgres: f64,
    /// The broker.
    pub(crate) broker: f64,
}

impl CpuTimes {
    /// Of all three together.
    pub(crate) fn all(self) -> f64 {
        self.publisher + self.postgres + self.broker
    }

    /// What was used since `earlier`, both in seconds, as microseconds for each of `messages`.
    pub(crate) fn microseconds_a_message(self, earlier: Self, messages: u32) -> Self {
        let each = |now: f64, then: f64| (now - then) * 1e6 / f64::from(messages);
        Self {
            publisher: each(self.publisher, earlier.publisher),
            postgres: each(self.postgres, earlier.postgres),
            broker: each(self.broker, earlier.broker),
        }
    }
}

/// Seconds of CPU time of this process alone: the servers are its children.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn of_this_process() -> Result<f64> {
    let [user, system, ..] = ticks("self").context("could not read the own CPU time")?;
    Ok(seconds(user + system))
}

/// Seconds of CPU time of a server and everything below it, living or ended: what has ended is in the account of
/// the parent that waited for it.
///
/// # Errors
/// The server is gone.
pub(crate) fn of_tree(pid: i32) -> Result<f64> {
    let own = || ticks(&pid.to_string()).with_context(|| format!("process {pid} is gone"));
    let mut before = own()?;
    for _ in 0..LOOKS {
        let below: u64 = descendants(pid)
            .into_iter()
            // One that is gone since it was listed is missing for this once.
            .filter_map(|pid| ticks(&pid.to_string()).ok())
            .flatten()
            .sum();
        let after = own()?;
        let [.., user, system] = after;
        // One that was waited for meanwhile is in neither account that was read, and may have all there is to tell.
        if before.ends_with(&[user, system]) {
            return Ok(seconds(before.iter().sum::<u64>() + below));
        }
        before = after;
    }
    bail!("the processes below {pid} end all the time")
}

/// Seconds of CPU time of single processes, without what they started, by process id.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProcessTimes(BTreeMap<i32, f64>);

impl ProcessTimes {
    /// Those that are gone are left out.
    pub(crate) fn of(pids: impl IntoIterator<Item = i32>) -> Self {
        let times = pids.into_iter().filter_map(|pid| {
            let [user, system, ..] = ticks(&pid.to_string()).ok()?;
            Some((pid, seconds(user + system)))
        });
        Self(times.collect())
    }

    /// What they used since `earlier`: one that was not there then, all that it has used; one that is gone, nothing.
    pub(crate) fn since(&self, earlier: &Self) -> f64 {
        self.0
            .iter()
            .map(|(pid, now)| now - earlier.0.get(pid).unwrap_or(&0.0))
            // Not `sum`, which is -0.0 for nothing.
            .fold(0.0, |sum, of| sum + of)
    }
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// User and system time of a process, then of its children that have ended.
fn ticks(process: &str) -> Result<[u64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The command's name is in parentheses and may hold anything, parentheses too.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("/proc/PID/stat has no command")?;
    // utime, stime, cutime, cstime are the fields 14 to 17; the first after the command is the third.
    let mut times = [0; 4];
    let mut fields = fields.split_whitespace().skip(11);
    for time in &mut times {
        let field = fields.next().context("/proc/PID/stat is too short")?;
        *time = field
            .parse()
            .context("a time in /proc/PID/stat is no number")?;
    }
    Ok(times)
}

fn descendants(pid: i32) -> Vec<i32> {
    // A child is listed under the thread that forked it.
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for thread in threads.flatten() {
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in list.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            all.push(child);
            all.extend(descendants(child));
        }
    }
    all
}

/// How many cores the whole machine keeps busy, looked at for a second.
///
/// # Errors
/// The kernel does not say.
pub(crate) async fn busy_cores() -> Result<f64> {
    let (before, began) = (busy_ticks()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(seconds(busy_ticks()?.saturating_sub(before)) / began.elapsed().as_secs_f64())
}

fn busy_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("could not read /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let times: Vec<u64> = line
        .split_whitespace()
        .filter_map(|time| time.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal, and then guests, who are in user and nice already.
    Ok(times
        .iter()
        .take(8)
        .enumerate()
        .filter(|(place, _)| ![3, 4].contains(place))
        .map(|(_, time)| time)
        .sum())
}

/// Checks that a process is the program it is thought to be: a figure of another one would look just as good.
///
/// # Errors
/// It is gone, or another.
pub(crate) fn ensure_is(pid: i32, program: &str) -> Result<()> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))
        .with_context(|| format!("process {pid} is gone"))?;
    ensure!(
        name.trim() == program,
        "process {pid} is {}, not {program}",
        name.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::ProcessTimes;

    #[test]
    fn what_ended_counts_nothing_and_what_began_counts_whole() {
        let earlier = ProcessTimes([(1, 4.0), (2, 8.0)].into());
        let now = ProcessTimes([(1, 5.0), (3, 0.25)].into());
        assert_eq!(now.since(&earlier), 1.25);
    }

    #[test]
    fn a_process_that_is_gone_is_left_out() {
        assert_eq!(ProcessTimes::of([i32::MAX]), ProcessTimes::default());
    }
}
