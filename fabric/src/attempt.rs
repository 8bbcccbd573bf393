//! One attempt at a time, shared by all who want what comes of it.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

/// An attempt of this age is one that is held and not polled: what came of it would be news of long ago.
const STALE: Duration = Duration::from_secs(30);

/// An attempt that whoever waits for it drives, and that ends with the last one who does.
///
/// A lock that is held during the attempt would do the same, until somebody who holds it or is next in its line is not polled
/// for a while, such as a stream beside another call in one task: then everybody waits for ever.
pub struct Attempt<T: Clone>(Option<(Instant, WeakShared<BoxFuture<'static, T>>)>);

impl<T: Clone> Attempt<T> {
    /// The attempt that is under way; if none is, the one that `begin` makes. Cancel safe.
    pub fn join<F>(&mut self, begin: impl FnOnce() -> F) -> Shared<BoxFuture<'static, T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let now = Instant::now();
        let fresh = |begun: &Instant| now.duration_since(*begun) < STALE;
        let held = self.0.as_ref().filter(|(begun, _)| fresh(begun));
        let held = held.and_then(|(_, attempt)| attempt.upgrade());
        // One that is over may still be held by somebody who has yet to hear of it.
        if let Some(under_way) = held.filter(|held| held.peek().is_none()) {
            return under_way;
        }
        let attempt = begin().boxed().shared();
        self.0 = attempt.downgrade().map(|attempt| (now, attempt));
        attempt
    }
}

impl<T: Clone> Default for Attempt<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> fmt::Debug for Attempt<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_who_is_not_polled_holds_nobody_up() {
        let mut attempt = Attempt::default();
        let (done, heard) = oneshot::channel();
        let mut first = attempt.join(|| async { heard.await.unwrap_or(0) });
        assert!(poll!(&mut first).is_pending());
        let mut second = attempt.join(|| async { 2 });
        assert!(poll!(&mut second).is_pending());
        done.send(1).unwrap();
        assert_eq!(second.await, 1);
        let third = attempt.join(|| async { 3 });
        assert_eq!(third.await, 3, "the first attempt is over");
        assert_eq!(first.await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_left_alone_for_long_is_not_joined() {
        let mut attempt = Attempt::default();
        let (_done, heard) = oneshot::channel();
        let mut first = attempt.join(|| async { heard.await.unwrap_or(0) });
        assert!(poll!(&mut first).is_pending());
        tokio::time::advance(STALE).await;
        assert_eq!(attempt.join(|| async { 2 }).await, 2);
    }

    #[tokio::test]
    async fn an_attempt_ends_with_the_last_who_waits() {
        let mut attempt = Attempt::default();
        let (done, heard) = oneshot::channel::<i32>();
        drop(attempt.join(|| async { heard.await.unwrap_or(0) }));
        assert!(done.is_closed());
        assert_eq!(attempt.join(|| async { 2 }).await, 2);
    }
}
