//! How often other nodes may push their status here: one that floods must not wear out our flash.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::api::Status;
use crate::pace::{Pace, STATUS, STATUS_BURST, status_bytes};

/// Nodes that are remembered before those that paid are forgotten.
const REMEMBERED: usize = 1024;

/// What each node pushed of late.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    paces: Mutex<HashMap<String, Pace>>,
    refused: Counter,
}

impl Pushes {
    /// Nothing yet; `refused` tells how many were.
    pub(super) fn counted(refused: Counter) -> Self {
        Self {
            refused,
            ..Self::default()
        }
    }

    /// Takes one push of `node`. A node's own Router reports a change at most fifty times a second, and tries again what is refused.
    ///
    /// # Errors
    /// It pushes too often, or too much: 429.
    pub(super) fn take(&self, node: &str) -> Result<(), Status> {
        let now = Instant::now();
        let mut all = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.retain(|_, pace| !pace.is_idle(now));
        }
        let pace = all
            .entry(node.to_owned())
            .or_insert_with(|| Pace::new(STATUS_BURST));
        if !pace.is_open(now) {
            self.refused.inc();
            let message =
                format!("node {node:?} pushes its status too often or too much; try again later");
            return Err(Status::too_many(message));
        }
        pace.take(now, STATUS);
        Ok(())
    }

    /// What `node` pushed had so many bytes.
    pub(super) fn wrote(&self, node: &str, bytes: usize) {
        let mut all = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = all.get_mut(node) {
            pace.take(Instant::now(), status_bytes(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn large_statuses_take_the_time_of_many() {
        let pushes = Pushes::default();
        let mut bytes = 0;
        for _ in 0..1000 {
            if pushes.take("large").is_ok() {
                pushes.wrote("large", 1 << 20);
                bytes += 1 << 20;
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((5 << 20..8 << 20).contains(&bytes), "{bytes} in 100 s");
    }

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
        assert_eq!(pushes.refused.get(), 10_000 - taken as u64 + 1);
        pushes.take("other").unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        for node in 0..2 * REMEMBERED {
            pushes.take(&node.to_string()).unwrap();
            tokio::time::advance(STATUS).await;
        }
        assert!(pushes.paces.lock().unwrap().len() <= REMEMBERED);
    }
}
