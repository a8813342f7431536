//! What each command does.

pub(crate) mod check_config;
pub(crate) mod completions;
pub(crate) mod config_show;
pub(crate) mod health;
pub(crate) mod migrate;
pub(crate) mod publish;
pub(crate) mod run;
pub(crate) mod status;
