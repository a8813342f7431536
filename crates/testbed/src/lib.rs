//! Real servers for tests, demo and benchmarks.
//!
//! Everything here runs the real thing: private PostgreSQL and RabbitMQ instances on free loopback ports in
//! temporary directories, the real daemon binary, real TCP connections through a fault proxy. Nothing needs a
//! server that is already installed to be running, and nothing collides with one that is.
//!
//! No process outlives the one that started it, whatever ends that one: children ask the kernel for SIGKILL at
//! their parent's death, a guardian process per directory kills what is left and removes the directory, and each
//! start sweeps directories whose owner is gone (see [`test_dir`]).

pub mod audit;
pub mod consumer;
pub mod daemon;
pub mod exposition;
pub mod full_disk;
pub mod order;
pub mod orders;
pub mod place;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod producer;
pub mod proxy;
pub mod rabbit;
mod server_process;
pub mod shared;
pub mod test_dir;
pub mod tls;
pub mod wait;

pub use audit::{Audit, AuditReport, Delivery};
pub use consumer::{Consumer, QueueKind};
pub use daemon::{Daemon, DaemonOptions};
pub use full_disk::FullDisk;
pub use order::{Inversion, OrderReport, Place};
pub use postgres::{Client, PostgresOptions, PostgresServer, StopMode, TestDatabase};
pub use producer::{Keys, Producer, ProducerOptions};
pub use proxy::{Direction, Proxy};
pub use rabbit::{ClientCertificates, RabbitOptions, RabbitServer, TestVhost, TokenIssuer};
pub use tls::{Authority, Identity};
pub use wait::wait_until;
