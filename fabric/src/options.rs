//! What may be said about single services, at either end. Everything has a default.

use std::time::Duration;

use crate::units::Rate;

/// Longest resume window that a service may have; zero is none: a lost leg resets its flows.
pub const MAX_RESUME_WINDOW: Duration = Duration::from_secs(600);
/// Longest idle time of a UDP association, and shortest.
pub const IDLE_TIMEOUTS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Largest weight.
pub const MAX_WEIGHT: u16 = 1_000;
/// Largest priority number.
pub const MAX_PRIORITY: u16 = 1_000;
/// Longest time between two checks, and shortest; also of a check's patience.
pub const CHECK_TIMES: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(3600));
/// Most checks in a row that may be asked for.
pub const MAX_CHECKS: u16 = 100;

/// What a provider says about a service that it publishes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicationOptions {
    /// Its share of new connections among providers of the same priority; 0 gets none while others have any.
    pub weight: u16,
    /// Providers of a lower number are taken first, others only when those are gone or unhealthy.
    pub priority: u16,
    /// How the backend's health is found out; none: it counts as healthy.
    pub check: Option<Check>,
    /// Most bytes per second, each direction for itself, of all flows of the service here together.
    pub limit: Option<Rate>,
    /// How long a flow without a leg is kept, at most [`MAX_RESUME_WINDOW`]; the shorter one of both ends counts.
    pub resume_window: Option<Duration>,
    /// How long a UDP association without packets is kept.
    pub idle_timeout: Option<Duration>,
}

impl Default for PublicationOptions {
    fn default() -> Self {
        Self {
            weight: 1,
            priority: 0,
            check: None,
            limit: None,
            resume_window: None,
            idle_timeout: None,
        }
    }
}

/// What a consumer says about a service that it uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowOptions {
    /// Most bytes per second, each direction for itself, of all flows to the service from here together.
    pub limit: Option<Rate>,
    /// How long a flow without a leg is kept, at most [`MAX_RESUME_WINDOW`].
    pub resume_window: Option<Duration>,
    /// How long a UDP association without packets is kept.
    pub idle_timeout: Option<Duration>,
    /// How long a provider may take to answer an open before it is given up, so that another one can be asked. For ever if
    /// the application has said something meanwhile: that may have been delivered.
    pub patience: Option<Duration>,
    /// How much longer an open is kept up whose provider a router does not hear, if the application has said something. Nobody
    /// else may be asked then, but the application may come again. For ever if nothing is said.
    pub silence: Option<Duration>,
}

/// An active check of a backend, made where the backend is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Check {
    /// What is done.
    pub probe: Probe,
    /// Time between two checks.
    pub interval: Duration,
    /// Time for one check; a longer one has failed.
    pub timeout: Duration,
    /// Failures in a row that make a backend unhealthy.
    pub failures: u16,
    /// Successes in a row that make it healthy again.
    pub recoveries: u16,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// Connects, and closes at once.
    Tcp,
    /// `GET` of this path; 2xx and 3xx are healthy.
    Http(String),
}

impl Check {
    /// A check of this kind with the default times and counts.
    #[must_use]
    pub const fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            failures: 3,
            recoveries: 2,
        }
    }
}
