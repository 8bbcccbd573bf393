//! Whether the providers that a router hands flows to still answer, known long before QUIC gives their connections up.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Shared;
use super::clients::Client;
use crate::silence::{Silence, patience};

/// How often a connection that owes an answer is looked at: what is opened there before the silence is noticed is lost.
const LOOK: Duration = Duration::from_millis(100);

/// What a connection owes as a provider, and whether it is silent about it.
#[derive(Debug)]
pub(super) struct Answers {
    /// Flows that were opened there without a word since.
    waiting: AtomicUsize,
    asked: Notify,
    silent: watch::Sender<bool>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            asked: Notify::new(),
            silent: watch::Sender::new(false),
        }
    }
}

impl Answers {
    /// A flow is about to be opened at the provider, which is watched from now on.
    pub(super) fn ask(&self) -> Asked<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.asked.notify_one();
        let mut silent = self.silent.subscribe();
        let silence = async move {
            // Never an error: the sender is borrowed.
            let _ = silent.wait_for(|silent| *silent).await;
        };
        Asked {
            answers: self,
            silence: Some(Box::pin(silence)),
        }
    }

    fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    pub(super) fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }
}

/// A flow that was opened at a provider and has no word of it yet; dropped with the first one.
pub(super) struct Asked<'a> {
    answers: &'a Answers,
    /// None once it was noticed.
    silence: Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
}

impl Asked<'_> {
    /// Ready once the provider is silent, and from then on.
    pub(super) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(silence) = &mut self.silence {
            std::task::ready!(silence.as_mut().poll(cx));
            self.silence = None;
        }
        Poll::Ready(())
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.answers.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

/// Watches `client` as long as flows wait for it as their provider, and while it is silent.
///
/// One that is asked nothing costs nothing, and need not be watched: the next flow that is opened there asks.
pub(super) async fn observe(shared: &Shared, client: &Client) {
    let (answers, connection) = (&client.answers, &client.connection);
    loop {
        answers.asked.notified().await;
        let mut silence = Silence::new(connection.traffic(), Instant::now());
        while answers.is_waiting() || answers.is_silent() {
            tokio::time::sleep(LOOK).await;
            let (heard, quiet) = silence.look(connection.traffic(), Instant::now());
            let silent = if answers.is_silent() {
                !heard
            } else {
                quiet >= patience(connection.rtt())
            };
            if silent != answers.is_silent() {
                note(shared, client, silent, quiet);
            }
        }
    }
}

fn note(shared: &Shared, client: &Client, silent: bool, quiet: Duration) {
    let (identity, remote) = (&client.identity, client.connection.remote_address());
    if silent {
        shared.metrics.router_suspicions.inc();
        tracing::info!(%identity, %remote, silent_ms = quiet.as_millis(), "the provider does not answer; new flows go to others");
    } else {
        tracing::info!(%identity, %remote, "the provider answers again");
    }
    shared.table().set_silent(identity, client.id, silent);
    client.answers.silent.send_replace(silent);
    shared.changed.notify_one();
}
