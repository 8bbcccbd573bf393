//! The one connection of a client.
//!
//! Whoever waits for it drives it. A lock that is held while connecting would be held as well by a call that nobody polls for a
//! while, such as a watch beside another call in one task, and that other call would wait for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::connection::Connection;
use super::error::ClientError;

type Opening = BoxFuture<'static, Result<Arc<Connection>, ClientError>>;

#[derive(Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Empty,
    /// Is being opened, for as long as somebody waits for it.
    Opening(WeakShared<Opening>),
    Open(Arc<Connection>),
}

impl Slot {
    /// The connection that is there, or what comes of an attempt to open one, which all who ask meanwhile share. Cancel safe: the
    /// attempt ends with the last one who waits for it.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) async fn get<F>(
        &self,
        open: impl FnOnce() -> F + Send,
    ) -> Result<Arc<Connection>, ClientError>
    where
        F: Future<Output = Result<Connection, ClientError>> + Send + 'static,
    {
        let opening = match self.find(open) {
            Ok(connection) => return Ok(connection),
            Err(opening) => opening,
        };
        let connection = opening.clone().await?;
        let mut state = self.lock();
        if let State::Opening(held) = &*state
            && held.upgrade().is_some_and(|held| held.ptr_eq(&opening))
        {
            *state = State::Open(connection.clone());
        }
        Ok(connection)
    }

    /// The connection is not used for new calls any more.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        let mut state = self.lock();
        if matches!(&*state, State::Open(held) if Arc::ptr_eq(held, connection)) {
            *state = State::Empty;
        }
    }

    fn find<F>(&self, open: impl FnOnce() -> F) -> Result<Arc<Connection>, Shared<Opening>>
    where
        F: Future<Output = Result<Connection, ClientError>> + Send + 'static,
    {
        let mut state = self.lock();
        match &*state {
            State::Open(connection) if !connection.is_gone() => return Ok(connection.clone()),
            State::Opening(held) => {
                // One that has failed is held by somebody who has yet to hear of it.
                let under_way = held.upgrade().filter(|held| held.peek().is_none());
                if let Some(opening) = under_way {
                    return Err(opening);
                }
            }
            State::Empty | State::Open(_) => {}
        }
        let connection = open();
        let opening = async move { Ok(Arc::new(connection.await?)) }
            .boxed()
            .shared();
        *state = opening.downgrade().map_or(State::Empty, State::Opening);
        Err(opening)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Never left half changed, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
