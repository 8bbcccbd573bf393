//! Writes the status of this node's Router: changes of state at once, what only ticks rarely, because flash wears out.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keel_certs::NodeName;
use keel_fabric::router::RouterView;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::report::{ReportContext, state_changed, status};
use crate::api::{Condition, RouterStatus, Time};
use crate::client::{Client, ClientError};

/// Changes that come together are written together: long enough for a sidecar's publications, too short to notice.
const GATHER: Duration = Duration::from_millis(20);
/// Changes that are written at once, and the time between those that follow: a service that comes and goes without end must
/// not wear out the flash of every node that hears of it.
const BURST: u32 = 30;
const APART: Duration = Duration::from_secs(1);
/// What a status is written before its time: the router's view of its counters is up to a second old when it is taken, and
/// the write takes a moment.
const LAG: Duration = Duration::from_millis(1500);
/// First and longest wait after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long the last words of a stopping router may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a [`Reporter`] reports for.
#[derive(Clone, Debug)]
pub struct ReporterConfig {
    /// The node, whose name is its Router's.
    pub node: NodeName,
    /// How old what only ticks (heartbeat, counters) may become: it is written a moment before. One of less than 3 s is
    /// kept but for the second that the router's view may be old.
    pub interval: Duration,
}

/// How far the changes written are ahead of one each [`APART`].
#[derive(Debug)]
struct Changes {
    ahead: Instant,
}

impl Changes {
    /// When the next one may be written.
    fn next(&self, now: Instant) -> Instant {
        let waits = self.ahead.checked_sub(APART * (BURST - 1));
        waits.map_or(now, |at| at.max(now))
    }

    fn written(&mut self, now: Instant) {
        self.ahead = self.ahead.max(now) + APART;
    }
}

/// Where statuses are written; the APIServer's client, or a test.
pub trait StatusSink: Send + Sync {
    /// Replaces the status of the Router called `node`.
    ///
    /// # Errors
    /// The write was not acknowledged.
    fn write(
        &self,
        node: &NodeName,
        status: &RouterStatus,
    ) -> impl Future<Output = Result<(), ClientError>> + Send;
}

impl StatusSink for Client {
    async fn write(&self, node: &NodeName, status: &RouterStatus) -> Result<(), ClientError> {
        self.apply_status(node, status).await.map(|_| ())
    }
}

/// Writes one Router's status.
#[derive(Debug)]
pub struct Reporter<S> {
    config: ReporterConfig,
    sink: S,
}

impl<S: StatusSink> Reporter<S> {
    /// A reporter that writes to `sink`.
    pub fn new(config: ReporterConfig, sink: S) -> Self {
        Self { config, sink }
    }

    /// Reports until `stop`, then says that the router takes no new flows, and once `view` has lost its sender that it is
    /// gone.
    ///
    /// A write that fails is tried again with what is true by then, and a status that is no longer there (`reported` turns
    /// false: somebody deleted the Router, or the store is a new one) is written again at once.
    pub async fn run(
        self,
        mut view: watch::Receiver<Arc<RouterView>>,
        mut context: watch::Receiver<Arc<ReportContext>>,
        mut reported: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut written: Option<RouterStatus> = None;
        let every = self.config.interval.saturating_sub(LAG);
        let every = every.max(self.config.interval / 2);
        let mut due = Instant::now();
        let mut retry = RETRY.0;
        let mut changes = Changes { ahead: due };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(due) => {}
                Ok(()) = view.changed() => {}
                Ok(()) = context.changed() => {}
                Ok(()) = reported.changed() => if !*reported.borrow_and_update() {
                    due = Instant::now();
                }
            }
            let now = SystemTime::now();
            let next = status(
                &view.borrow_and_update(),
                &context.borrow_and_update(),
                written.as_ref(),
                now,
            );
            let state = written.as_ref().is_none_or(|old| state_changed(old, &next));
            if !state && Instant::now() < due {
                continue;
            }
            if state && written.is_some() && Instant::now() < due {
                // Publications come in groups: wait a moment for the rest, then build the status again.
                let now = Instant::now();
                due = due.min(changes.next(now).max(now + GATHER));
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = sleep_until(due) => {}
                }
            }
            let next = status(
                &view.borrow_and_update(),
                &context.borrow_and_update(),
                written.as_ref(),
                SystemTime::now(),
            );
            let built = Instant::now();
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                outcome = self.sink.write(&self.config.node, &next) => outcome,
            };
            match outcome {
                Ok(()) => {
                    debug!(
                        services = next.active_services.len(),
                        "status of the Router written"
                    );
                    written = Some(next);
                    if state {
                        changes.written(built);
                    }
                    due = built + every;
                    retry = RETRY.0;
                }
                Err(error) => {
                    warn!(error = %error, again_in = ?retry, "cannot write the Router's status");
                    due = Instant::now() + retry;
                    // Nothing must wake the loop earlier than that: a failing server is not asked in a tight loop.
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = sleep_until(due) => {}
                    }
                    retry = (retry * 2).min(RETRY.1);
                }
            }
        }
        let context = context.borrow().clone();
        let gone = RouterView {
            started: view.borrow().started,
            ..RouterView::default()
        };
        let mut ended = pin!(async { while view.changed().await.is_ok() {} });
        // A router without flows is gone at once, and one write is enough.
        if timeout(GATHER, &mut ended).await.is_err() {
            let words = ("Draining", "the router stops and takes no new flows");
            self.farewell(&gone, &context, &written, words).await;
            ended.await;
        }
        let words = ("Stopped", "the router was stopped");
        self.farewell(&gone, &context, &written, words).await;
    }

    /// Tells everybody that nothing can be reached here any more, so that consumers need not find out.
    async fn farewell(
        &self,
        gone: &RouterView,
        context: &ReportContext,
        written: &Option<RouterStatus>,
        (reason, message): (&str, &str),
    ) {
        let now = SystemTime::now();
        let mut last = status(gone, context, written.as_ref(), now);
        last.conditions
            .retain(|condition| condition.kind != "Ready");
        last.conditions.insert(
            0,
            Condition {
                kind: "Ready".to_owned(),
                status: "False".to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
                last_transition_time: Some(Time::from(now)),
                ..Condition::default()
            },
        );
        match timeout(FAREWELL, self.sink.write(&self.config.node, &last)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the Router's last status was not written"),
            Err(_) => debug!("the Router's last status was not written in time"),
        }
    }
}

#[cfg(test)]
mod tests;
