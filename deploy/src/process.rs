//! What every binary shares: its runtime, its signals (the first SIGTERM or Ctrl-C asks for a graceful stop, the second
//! ends at once), its exit code, its view of the environment.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::errors::{Interrupted, Usage, chain};
use crate::settings::environment::variable;
use crate::settings::{Machine, NodeFlags, NodeSettings, SidecarFlags, SidecarSettings};
use crate::telemetry::{self, LogSettings};

/// Ended by a signal, as a shell would report it.
const KILLED: u8 = 130;

/// A signal this soon after the first is its echo: `timeout` and shells signal the process and then its whole group.
const ECHO: Duration = Duration::from_millis(250);

/// Workers for the control plane of a node; the bytes have a thread of their own.
pub const NODE_THREADS: usize = 2;

/// Starts the log as the environment says; `default` is the filter when it says nothing.
///
/// # Errors
/// `KEEL_LOG` or `KEEL_LOG_FORMAT` cannot be understood.
pub fn start_log(default: &str) -> Result<(), Usage> {
    telemetry::init(&LogSettings::from_env(variable, default)?)
}

/// The data directory when none is given.
pub fn default_data_dir() -> PathBuf {
    keel_certs::default_data_dir(variable)
}

/// Lays the flags over their file and fills in the defaults.
///
/// # Errors
/// The file's, with file and line; a value out of range. Both are wrong usage.
pub fn node_settings(flags: NodeFlags) -> anyhow::Result<NodeSettings> {
    let flags = flags.with_file().map_err(|error| Usage(chain(&error)))?;
    Ok(flags.resolve(default_data_dir(), host_name())?)
}

/// The same for a sidecar.
///
/// # Errors
/// As [`node_settings`]; a token that cannot be read.
pub fn sidecar_settings(flags: SidecarFlags) -> anyhow::Result<SidecarSettings> {
    let flags = flags.with_file().map_err(|error| Usage(chain(&error)))?;
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())
        .ok()
        .flatten();
    let machine = Machine {
        data_dir: default_data_dir(),
        host: host_name(),
        user: user.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name),
    };
    Ok(flags.resolve(&machine)?)
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

/// What a process may take after the second signal.
const HURRY: Duration = Duration::from_millis(500);

/// What signals ask of a process.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Cancelled by the first SIGTERM or SIGINT.
    pub asked: CancellationToken,
    /// Cancelled by the second one: nothing is waited for any more.
    pub hurry: CancellationToken,
}

/// Runs `main` on a runtime with `threads` workers (1: on this thread) until it ends, but not long after a second signal:
/// the other ends of what is cut are told, and that is all.
///
/// An error is printed once, with its causes; the exit code is 0, 1 (failed), 2 (wrong usage or configuration) or 130 (second
/// signal).
pub fn run<F, R>(threads: usize, main: F) -> ExitCode
where
    F: FnOnce(Stop) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&anyhow::Error::new(error).context("cannot make the runtime")),
    };
    let code = runtime.block_on(async {
        let stop = Stop::default();
        let mut signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return report(&error),
        };
        let main = main(stop.clone());
        tokio::pin!(main);
        tokio::select! {
            biased;
            outcome = &mut main => return exit_code(outcome),
            name = signals.next() => {
                tracing::info!(signal = name, "stopping; a second signal ends at once");
                stop.asked.cancel();
            }
        }
        let first = tokio::time::Instant::now();
        loop {
            tokio::select! {
                biased;
                outcome = &mut main => return exit_code(outcome),
                name = signals.next() => {
                    if first.elapsed() < ECHO {
                        continue;
                    }
                    tracing::warn!(signal = name, "second signal: ending at once");
                    break;
                }
            }
        }
        stop.hurry.cancel();
        let _ = tokio::time::timeout(HURRY, main).await;
        ExitCode::from(KILLED)
    });
    // Blocking threads (a file being read, a name being looked up) must not hold up the end.
    runtime.shutdown_background();
    code
}

/// Runs a command that only asks, and has nothing to put in order: the first signal ends it.
pub fn command<R>(main: impl FnOnce() -> R) -> ExitCode
where
    R: Future<Output = anyhow::Result<()>>,
{
    run(1, |stop| async move {
        let main = std::pin::pin!(main());
        let outcome = stop.asked.run_until_cancelled(main).await;
        outcome.unwrap_or_else(|| Err(Interrupted.into()))
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Writes a line to standard error. If that cannot be written to, nobody wants to know; `eprintln` would panic.
pub(crate) fn say(line: &str) {
    show(&format!("{line}\n"));
}

/// As [`say`], without the end of the line.
pub(crate) fn show(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints an error once, with its causes, and gives the exit code that belongs to it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return ExitCode::from(KILLED);
    }
    say(&format!("error: {}", chain(error.as_ref())));
    match error.chain().any(<dyn std::error::Error>::is::<Usage>) {
        true => ExitCode::from(2),
        false => ExitCode::FAILURE,
    }
}
