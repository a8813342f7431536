//! Expressions that the broker evaluates inside itself.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::RabbitServer;

/// How long one evaluated expression may take.
const EVAL_DEADLINE: Duration = Duration::from_secs(60);

impl RabbitServer {
    /// Evaluates an Erlang expression (ending in a full stop) inside the broker, within a millisecond or so; its
    /// value as Erlang prints it.
    ///
    /// # Errors
    /// The broker is not there, the expression fails, or there is no answer within a minute.
    pub async fn eval(&self, expression: &str) -> Result<String> {
        let answer = timeout(EVAL_DEADLINE, self.eval_now(expression))
            .await
            .map_err(|_| anyhow!("the broker did not evaluate within {EVAL_DEADLINE:?}"))
            .flatten()
            .with_context(|| format!("could not evaluate {expression}"))?;
        match answer.split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            _ => bail!("{expression} failed: {answer}"),
        }
    }

    async fn eval_now(&self, expression: &str) -> Result<String> {
        let mut socket = UnixStream::connect(self.eval_socket()).await?;
        let length = u32::try_from(expression.len())?;
        socket.write_all(&length.to_be_bytes()).await?;
        socket.write_all(expression.as_bytes()).await?;
        let length = socket.read_u32().await?;
        let mut answer = vec![0; length as usize];
        socket.read_exact(&mut answer).await?;
        Ok(String::from_utf8(answer)?)
    }

    /// Evaluates an expression whose value shall be `ok`.
    pub(super) async fn expect_ok(&self, expression: &str) -> Result<()> {
        let answer = self.eval(expression).await?;
        ensure!(answer == "ok", "the broker refused: {answer}");
        Ok(())
    }
}

pub(super) fn erlang_string(text: &str) -> String {
    format!("{text:?}")
}

pub(super) fn erlang_binary(text: &str) -> String {
    format!("<<{}/utf8>>", erlang_string(text))
}
