//! The threads that the program's tasks run on.

use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// How long calls into the system that cannot be cancelled may keep a process that is done.
const GRACE: Duration = Duration::from_secs(1);

/// The workers that one thread serves.
///
/// A worker waits for the servers most of the time: the daemon takes some 6 µs of CPU time for a message of 256 bytes, the thread that each
/// connection to the broker has of its own included, so one thread is enough for more than a quorum queue takes. With one and not two, no step of
/// a message wakes a second thread that finds nothing to do: up to a tenth less of the daemon's CPU time and a third less memory, at the same rate
/// and latency (docs/benchmarks.md, "One thread").
const WORKERS_OF_A_THREAD: u32 = 2;

/// Runs a command that does one thing after the other.
pub(crate) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    block_on_threads(1, work)
}

/// Runs the daemon with so many workers.
pub(crate) fn block_on_for<T>(
    workers: u32,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    block_on_threads(threads_for(workers, cores), work)
}

fn block_on_threads<T>(
    threads: usize,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = with_threads(threads)?;
    let result = runtime.block_on(work);
    // A name that is still being resolved cannot be cancelled: it must not keep the process.
    runtime.shutdown_timeout(GRACE);
    result
}

/// Beside the main thread, which waits for the command: a connection to the broker is driven by a thread of its own, and needs another that watches its socket.
fn with_threads(threads: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
}

fn threads_for(workers: u32, cores: usize) -> usize {
    let wanted = usize::try_from(workers.div_ceil(WORKERS_OF_A_THREAD)).unwrap_or(usize::MAX);
    wanted.clamp(1, cores.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_thread_for_two_workers_and_none_without_a_core() {
        assert_eq!(threads_for(1, 8), 1);
        assert_eq!(threads_for(2, 8), 1);
        assert_eq!(threads_for(3, 8), 2);
        assert_eq!(threads_for(16, 8), 8);
        assert_eq!(threads_for(64, 2), 2);
    }

    #[test]
    fn a_runtime_has_the_threads_that_were_asked_for() {
        for threads in [1, 2] {
            let runtime = with_threads(threads).unwrap();
            assert_eq!(runtime.metrics().num_workers(), threads);
        }
    }
}
