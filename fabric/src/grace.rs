//! How long what runs may go on after a stop.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A time, and whoever asked for the stop may end it early. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Grace {
    /// How long it lasts at most.
    pub time: Duration,
    /// Ends it at once, whenever it is cancelled.
    pub hurry: CancellationToken,
}

impl Grace {
    /// Waits until it is over. It begins with the call.
    pub async fn over(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.time) => {}
            () = self.hurry.cancelled() => {}
        }
    }
}

impl From<Duration> for Grace {
    fn from(time: Duration) -> Self {
        Self {
            time,
            ..Self::default()
        }
    }
}
