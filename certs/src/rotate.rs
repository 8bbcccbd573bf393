//! Renewal: at half of a leaf's life, with jitter, for as long as it takes, with a new key each time.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use tokio::time::{sleep, timeout};

use crate::{
    issue::{BACKDATE, Chain, Csr, KeyPair},
    live::LiveIdentity,
    verify::rfc3339,
};

/// A new chain for a key, and the trust bundle of whoever answered. [`rotate`] does not take the bundle over.
pub type Renewed = (Chain, Vec<CertificateDer<'static>>);

/// Whoever can be asked for a new certificate of the own identity: an authority in this process, a socket, a server.
pub trait Issuer: Send + Sync {
    /// Asks for a chain for the key of `csr`. The future may be dropped at any time; a call without an answer may be
    /// repeated.
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>>;
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Whoever was asked refused.
    #[error("refused: {0}")]
    Refused(String),
    /// Nobody could be asked.
    #[error("{0}")]
    Unreachable(String),
}

/// The clock is looked at again this often, because a sleeping machine or a corrected clock moves the end of a certificate
/// without moving timers.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long one attempt may take, whoever is asked.
const ATTEMPT: Duration = Duration::from_secs(60);
/// Pause after the first failed attempt; doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts while the certificate is good,
const LONGEST_PAUSE: Duration = Duration::from_secs(150);
/// and when it is not: nothing goes until there is another one, and whoever gives it may just be back.
const EXPIRED_PAUSE: Duration = Duration::from_secs(5);

/// Renews `live` until `shutdown`. Cancel safe: an attempt that is dropped changes nothing.
pub async fn rotate(
    live: LiveIdentity,
    issuer: Arc<dyn Issuer>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    rotate_by(&live, &*issuer, shutdown.as_mut(), SystemTime::now).await;
}

async fn rotate_by(
    live: &LiveIdentity,
    issuer: &dyn Issuer,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
    clock: impl Fn() -> SystemTime,
) {
    let mut pause = FIRST_PAUSE;
    let mut said: Option<SystemTime> = None;
    let mut jitter = rand::random_range(-0.1..=0.1);
    loop {
        let wait = due(live.not_before(), live.not_after(), clock(), jitter);
        let step = async {
            if !wait.is_zero() {
                sleep(wait.min(LOOK_AGAIN)).await;
                return None;
            }
            Some(attempt(live, issuer).await)
        };
        let outcome = tokio::select! {
            biased;
            () = &mut shutdown => return,
            outcome = step => outcome,
        };
        match outcome {
            None => continue,
            Some(Ok(())) => {
                tracing::info!(identity = %live.identity(), until = rfc3339(live.not_after()), "certificate renewed");
                jitter = rand::random_range(-0.1..=0.1);
                // An issuer whose own end is near, or whose clock is behind, signs certificates that are due at once:
                // then the pauses grow as if it had failed.
                if !due(live.not_before(), live.not_after(), clock(), jitter).is_zero() {
                    pause = FIRST_PAUSE;
                    continue;
                }
            }
            Some(Err(error)) => {
                let until = rfc3339(live.not_after());
                if clock() < live.not_after() {
                    tracing::warn!(identity = %live.identity(), until, %error, "cannot renew the certificate yet");
                } else if said.is_none_or(|at| at + LONGEST_PAUSE <= clock()) {
                    said = Some(clock());
                    tracing::error!(identity = %live.identity(), until, %error, "the certificate has expired and cannot be renewed");
                }
            }
        }
        let longest = match clock() < live.not_after() {
            true => LONGEST_PAUSE,
            false => EXPIRED_PAUSE,
        };
        pause = pause.min(longest);
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(longest);
    }
}

async fn attempt(live: &LiveIdentity, issuer: &dyn Issuer) -> Result<(), String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let csr = key.csr().map_err(|error| error.to_string())?;
    let renewed = timeout(ATTEMPT, issuer.renew(&csr))
        .await
        .map_err(|_| format!("no answer within {} s", ATTEMPT.as_secs()))?;
    // The roots stay those that are held: whoever answers must not choose whom this process believes.
    let (chain, _) = renewed.map_err(|error| error.to_string())?;
    live.replace(key, chain).map_err(|error| error.to_string())
}

/// When half of a certificate's life is over. The backdated part of it is not life.
pub(crate) fn half_life(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let (issued, life) = life(not_before, not_after);
    issued + life / 2
}

/// How long to wait until a certificate is due; zero if it is. `jitter` moves the moment by that part of the half-life.
fn due(not_before: SystemTime, not_after: SystemTime, now: SystemTime, jitter: f64) -> Duration {
    let (issued, life) = life(not_before, not_after);
    let at = issued + (life / 2).mul_f64((1.0 + jitter).max(0.0));
    at.duration_since(now).unwrap_or(Duration::ZERO)
}

fn life(not_before: SystemTime, not_after: SystemTime) -> (SystemTime, Duration) {
    let issued = if not_before + BACKDATE < not_after {
        not_before + BACKDATE
    } else {
        not_before
    };
    (
        issued,
        not_after.duration_since(issued).unwrap_or(Duration::ZERO),
    )
}

#[cfg(test)]
mod tests;
