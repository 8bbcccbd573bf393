//! What a crowd of connections leaves behind: memory that is free and still the process's.

use std::convert::Infallible;
use std::time::Duration;

use tokio::runtime::Handle;

/// How often it is looked whether a crowd has gone.
const LOOK: Duration = Duration::from_secs(5);

/// Fewer tasks than this leave too little behind.
const CROWD: usize = 64;

/// Gives memory back to the system whenever most tasks of `runtime` have ended; never ends. Cancel safe.
///
/// glibc gives back by itself only what lies behind everything that is used, which after 2,000 flows is next to nothing.
pub(super) async fn clean_up(runtime: Handle) -> Infallible {
    let mut crowd = Crowd::default();
    loop {
        tokio::time::sleep(LOOK).await;
        if crowd.has_gone(runtime.metrics().num_alive_tasks()) {
            trim();
        }
    }
}

/// The most tasks since memory was last given back.
#[derive(Debug, Default)]
struct Crowd(usize);

impl Crowd {
    /// Whether most have ended of those that were there.
    fn has_gone(&mut self, alive: usize) -> bool {
        self.0 = self.0.max(alive);
        let gone = self.0 >= CROWD && alive <= self.0 / 2;
        if gone {
            self.0 = alive;
        }
        gone
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "no safe call gives memory back")]
fn trim() {
    // SAFETY: it takes no pointer, and any thread may call it at any time (malloc_trim(3)).
    let gave = unsafe { nix::libc::malloc_trim(0) };
    tracing::debug!(gave, "a crowd has gone: free memory was given back");
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_gone_when_most_of_it_has() {
        let mut crowd = Crowd::default();
        for (alive, gone) in [
            (10, false),
            (0, false),
            (100, false),
            (51, false),
            (50, true),
            (50, false),
            (0, false),
            (2000, false),
            (900, true),
            (20, true),
            (20, false),
        ] {
            assert_eq!(crowd.has_gone(alive), gone, "{alive}");
        }
    }
}
