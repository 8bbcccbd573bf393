//! Logs on stderr, numbers for Prometheus.

mod logs;
mod process;

pub use logs::{LogFormat, LogSettings, init};
pub use process::{ProcessCollector, Runtimes};
