//! The thread that moves the bytes: one current-thread runtime, so that no flow ever crosses a core.

use std::future::Future;
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;

use super::crowd;
use crate::telemetry::Runtimes;

/// A running data-path thread.
///
/// Dropping it leaves the thread running until its own stop signal; [`DataPath::join`] waits for its end.
#[derive(Debug)]
pub(super) struct DataPath {
    done: oneshot::Receiver<anyhow::Result<()>>,
    thread: JoinHandle<()>,
}

impl DataPath {
    /// Starts a thread called `name` and runs the future that `main` makes inside it; its tasks are counted as those of the
    /// runtime `data`.
    ///
    /// Sockets belong to the runtime they are made in, so `main` binds what it serves.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start<F, R>(name: &str, runtimes: Runtimes, main: F) -> anyhow::Result<Self>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>>,
    {
        let (tell, done) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let outcome = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => {
                        runtimes.count("data", runtime.handle().clone());
                        let clean_up = crowd::clean_up(runtime.handle().clone());
                        runtime.block_on(async {
                            tokio::select! {
                                outcome = main() => outcome,
                                never = clean_up => match never {},
                            }
                        })
                    }
                    Err(error) => Err(error).context("cannot make the runtime of the data path"),
                };
                // Nobody listens only when the owner is being dropped anyway.
                let _ = tell.send(outcome);
            });
        Ok(Self {
            done,
            thread: thread.context("cannot start the thread of the data path")?,
        })
    }

    /// Waits until the future has ended. Cancel safe: the thread goes on.
    ///
    /// # Errors
    /// What the future returned, or that the thread panicked.
    pub(super) async fn ended(&mut self) -> anyhow::Result<()> {
        match (&mut self.done).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("the data path panicked")),
        }
    }

    /// Waits for the end and joins the thread.
    ///
    /// # Errors
    /// As [`DataPath::ended`].
    pub(super) async fn join(mut self) -> anyhow::Result<()> {
        let outcome = self.ended().await;
        // The answer is the last thing that the thread does, so this returns at once.
        let joined = self.thread.join();
        outcome.and(joined.map_err(|_| anyhow!("the data path panicked")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_outcome_and_a_panic_come_back() {
        let fine = DataPath::start("fine", Runtimes::default(), || async { Ok(()) }).unwrap();
        fine.join().await.unwrap();
        let failed = DataPath::start("failed", Runtimes::default(), || async {
            Err(anyhow!("no socket"))
        })
        .unwrap();
        assert_eq!(failed.join().await.unwrap_err().to_string(), "no socket");
        let panicked = DataPath::start("panicked", Runtimes::default(), || async {
            panic!("on purpose")
        })
        .unwrap();
        assert!(
            panicked
                .join()
                .await
                .unwrap_err()
                .to_string()
                .contains("panicked")
        );
    }
}
