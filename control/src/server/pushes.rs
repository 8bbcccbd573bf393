//! How often other nodes may push their status here: one that floods must not wear out our flash.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::Status;
use crate::pace::Pace;

/// What a push costs: ten a second,
const PUSH: Duration = Duration::from_millis(100);
/// and twenty at once. A node's own Router reports a change at most fifty times a second, and tries again what is refused.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Nodes that are remembered before those that paid are forgotten.
const REMEMBERED: usize = 1024;

/// What each node pushed of late.
#[derive(Debug, Default)]
pub(super) struct Pushes(Mutex<HashMap<String, Pace>>);

impl Pushes {
    /// Takes one push of `node`.
    ///
    /// # Errors
    /// It pushes too often: 429.
    pub(super) fn take(&self, node: &str) -> Result<(), Status> {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.retain(|_, pace| !pace.is_idle(now));
        }
        let pace = all
            .entry(node.to_owned())
            .or_insert_with(|| Pace::new(AT_ONCE));
        if !pace.is_open(now) {
            let message = format!("node {node:?} pushes its status too often; try again later");
            return Err(Status::too_many(message));
        }
        pace.take(now, PUSH);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_floods_takes_nothing_from_others() {
        let pushes = Pushes::default();
        let mut taken = 0;
        for _ in 0..10_000 {
            taken += usize::from(pushes.take("flood").is_ok());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((110..=130).contains(&taken), "{taken} in 10 s");
        let refused = loop {
            if let Err(status) = pushes.take("flood") {
                break status;
            }
        };
        assert_eq!(refused.code, 429);
        pushes.take("other").unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        for node in 0..2 * REMEMBERED {
            pushes.take(&node.to_string()).unwrap();
            tokio::time::advance(PUSH).await;
        }
        assert!(pushes.0.lock().unwrap().len() <= REMEMBERED);
    }
}
