//! What each command does.

pub(crate) mod change;
pub(crate) mod check;
pub(crate) mod check_config;
pub(crate) mod completions;
pub(crate) mod config_show;
pub(crate) mod dead_letters;
pub(crate) mod deferred;
pub(crate) mod grants;
pub(crate) mod health;
pub(crate) mod keys;
pub(crate) mod letter;
pub(crate) mod man;
pub(crate) mod migrate;
pub(crate) mod publish;
pub(crate) mod run;
pub(crate) mod status;
