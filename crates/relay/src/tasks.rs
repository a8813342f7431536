//! Tasks with names: each is owned here and joined, and a panic comes out with the name of its task.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use crate::run::RelayError;

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, String>,
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name.into());
    }

    /// Waits for the next task to end; `None` when all have.
    pub(crate) async fn next(&mut self) -> Option<Result<(), RelayError>> {
        let ended = self.set.join_next().await?;
        Some(ended.map_err(|source| RelayError::TaskFailed {
            task: self.names.remove(&source.id()).unwrap_or_default(),
            source,
        }))
    }

    /// Waits for every task; gives the first failure.
    pub(crate) async fn join(&mut self) -> Result<(), RelayError> {
        let mut result = Ok(());
        while let Some(ended) = self.next().await {
            result = result.and(ended);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_comes_out_with_the_name_of_its_task_and_the_others_are_joined() {
        let mut tasks = Tasks::default();
        tasks.spawn("good", async {});
        tasks.spawn("bad", async { panic!("oh") });
        let error = tasks.join().await.unwrap_err();
        assert!(error.to_string().contains("`bad`"), "{error}");
        assert!(tasks.next().await.is_none());
    }
}
