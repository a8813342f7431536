//! A real Prometheus for one test, with the configuration and the rules that are shipped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use postrider_testbed::ports::free_port;
use postrider_testbed::process::Process;
use postrider_testbed::test_dir::TestDir;
use postrider_testbed::wait_until;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::files::{read, yaml};
use crate::observed::DEADLINE;
use crate::queries::RULES;

/// Dropping it kills it.
pub(crate) struct Prometheus {
    // Before `_dir`, so that it is dropped before the directory is removed.
    process: Process,
    _dir: TestDir,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes these relays every second.
    pub(crate) async fn scraping(relays: &[SocketAddr]) -> Self {
        // Another process may take the port before Prometheus does.
        for _ in 0..5 {
            if let Some(prometheus) = Self::try_start(relays).await {
                return prometheus;
            }
        }
        panic!("prometheus does not start");
    }

    async fn try_start(relays: &[SocketAddr]) -> Option<Self> {
        let dir = TestDir::create().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let config = dir.path().join("prometheus.yml");
        fs::write(&config, configuration(relays)).unwrap();
        fs::write(dir.path().join("postrider.rules.yml"), read(RULES)).unwrap();
        let log = dir.path().join("log");
        let output = File::create(&log).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "prometheus"])
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let process = Process::start(command).unwrap();
        dir.record_process(process.pid()).unwrap();
        let prometheus = Self {
            process,
            _dir: dir,
            address,
        };
        wait_until(DEADLINE, "prometheus is ready, or has ended", async || {
            !prometheus.process.is_alive()
                || matches!(prometheus.get("/-/ready").await, Some((200, _)))
        })
        .await
        .unwrap();
        if prometheus.process.is_alive() {
            return Some(prometheus);
        }
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("address already in use"), "{log}");
        None
    }

    /// The result of an instant query.
    pub(crate) async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.json(&format!("/api/v1/query?query={query}")).await;
        match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.clone()),
            None => Err(answer.to_string()),
        }
    }

    /// The alerts of that name that fire.
    pub(crate) async fn firing(&self, alert: &str) -> Vec<Value> {
        let answer = self.json("/api/v1/alerts").await;
        let alerts = answer["data"]["alerts"].as_array().unwrap();
        alerts
            .iter()
            .filter(|found| found["labels"]["alertname"] == alert && found["state"] == "firing")
            .cloned()
            .collect()
    }

    async fn json(&self, path: &str) -> Value {
        let (_, body) = self
            .get(path)
            .await
            .unwrap_or_else(|| panic!("prometheus does not answer {path}"));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut socket = TcpStream::connect(self.address).await.ok()?;
        // 1.0: the answer ends with the connection and is not chunked.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

/// The shipped configuration with the relays of the test in place of its own, looking every second.
fn configuration(relays: &[SocketAddr]) -> String {
    let shipped = read("deploy/prometheus/prometheus.yml");
    let parsed: Value = yaml("deploy/prometheus/prometheus.yml");
    let targets = &parsed["scrape_configs"][0]["static_configs"][0]["targets"];
    let mut config = shipped.replace(": 15s", ": 1s");
    assert_ne!(config, shipped);
    for (number, target) in crate::files::texts(targets).iter().enumerate() {
        let line = format!("          - {target}\n");
        assert!(config.contains(&line));
        let relay = relays
            .get(number)
            .map(|relay| format!("          - {relay}\n"));
        config = config.replace(&line, &relay.unwrap_or_default());
    }
    config
}
