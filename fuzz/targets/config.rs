//! A configuration file of any bytes: read, or refused without a secret in what is said.
//!
//! What follows `can~ary`, up to a quote or a space, is a secret wherever it stands.

#![no_main]

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

// The program is no library; its configuration needs nothing else of it.
#[allow(dead_code, unused_imports, reason = "only the reading is tried here")]
#[path = "../../crates/postrider/src/config/mod.rs"]
mod config;

use config::{Inputs, Loaded};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("postrider-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*FILE, data).expect("the temporary directory takes files");
    let loaded = Loaded::from(&Inputs {
        file: Some(FILE.clone()),
        default_file: FILE.clone(),
        environment: Vec::<(OsString, OsString)>::new(),
        host_name: "host".to_owned(),
    });
    if let Err(error) = loaded {
        let said = format!("{error} {error:?}");
        assert!(!said.contains("can~ary"), "{said}");
    }
});
