//! Nothing outlives its owner.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use postrider_testbed::{test_dir::sweep, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Runs `script` under `with-servers` and returns that child and the script's first line.
fn with_servers(script: &str) -> (std::process::Child, String) {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_with-servers"))
        .args(["sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (owner, line.trim().to_owned())
}

fn directories(of: u32) -> Vec<std::path::PathBuf> {
    let prefix = format!("postrider-testbed.{of}.");
    std::fs::read_dir(std::env::temp_dir())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

fn pids(directories: &[std::path::PathBuf]) -> Vec<String> {
    directories
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir.join("pids")).unwrap().flatten())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn servers_and_directories_go_when_their_owner_is_killed() {
    let (mut owner, _) = with_servers("echo $TESTBED_POSTGRES; exec sleep 600");
    let directories = directories(owner.id());
    let pids = pids(&directories);
    assert_eq!(directories.len(), 2);
    assert_eq!(pids.len(), 3, "postgres, epmd and rabbitmq");
    assert!(pids.iter().all(|pid| alive(pid)));
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until(DEADLINE, "servers and directories to go", async || {
        !pids.iter().any(|pid| alive(pid)) && !directories.iter().any(|dir| dir.exists())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn with_servers_gives_back_the_exit_code_and_leaves_nothing() {
    let (mut owner, _) =
        with_servers("test -n \"$TESTBED_POSTGRES\" -a -n \"$TESTBED_RABBIT\" && echo && exit 7");
    assert_eq!(owner.wait().unwrap().code(), Some(7));
    assert_eq!(directories(owner.id()), Vec::<std::path::PathBuf>::new());

    let (mut owner, _) = with_servers("echo; exec sleep 600");
    Command::new("kill")
        .args(["-TERM", &owner.id().to_string()])
        .status()
        .unwrap();
    assert_eq!(owner.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(directories(owner.id()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_an_owner_and_its_guardian_left_behind_is_swept() {
    // As after a crash that took guardian and all: the lock is free, a process still runs.
    let dir = std::env::temp_dir().join(format!("postrider-testbed.0.{}", std::process::id()));
    std::fs::create_dir_all(dir.join("pids")).unwrap();
    let mut orphan = Command::new("sleep").arg("600").spawn().unwrap();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let ticks =
        |pid: u32| postrider_testbed::process::start_ticks(i32::try_from(pid).unwrap()).unwrap();
    let note = |pid: u32, ticks: u64| {
        std::fs::write(dir.join("pids").join(pid.to_string()), ticks.to_string()).unwrap();
    };
    note(orphan.id(), ticks(orphan.id()));
    // An id that belongs to another process by now.
    note(stranger.id(), ticks(stranger.id()) - 1);
    let lock = std::fs::File::create(dir.join("lock")).unwrap();
    lock.set_modified(std::time::SystemTime::now() - Duration::from_secs(60))
        .unwrap();

    lock.try_lock().unwrap();
    sweep();
    assert!(Path::exists(&dir), "its owner lives: it holds the lock");
    lock.unlock().unwrap();
    sweep();
    assert!(!Path::exists(&dir));
    assert!(!orphan.wait().unwrap().success());
    assert!(alive(&stranger.id().to_string()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
