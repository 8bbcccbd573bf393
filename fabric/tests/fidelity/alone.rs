//! Who looks at times, or at what the whole process has, runs alone; the other tests of this program run beside each other.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static TURN: RwLock<()> = RwLock::const_new(());

pub(crate) async fn beside() -> RwLockReadGuard<'static, ()> {
    TURN.read().await
}

pub(crate) async fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().await
}
