//! The tunnels: how each is started, and what of it is counted.

mod keel;
mod peers;
mod rathole;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use keel_tests::need;
use keel_tests::process::{Process, Program};
use keel_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine;
use crate::place::Place;
use keel::Ends;

/// What may lie between an application and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// Nothing.
    Direct,
    /// A sidecar beside the application, a router that dials the server.
    Keel,
    /// The same with a resume window of zero at both ends: nothing is kept for another leg.
    KeelNoResume,
    /// A sidecar at either end, and a router beside the first one.
    KeelSidecars,
    /// rathole without encryption.
    RatholePlain,
    /// rathole over TLS.
    RatholeTls,
    /// rathole over the Noise protocol.
    RatholeNoise,
    /// bore, which does not encrypt.
    Bore,
    /// A reverse forwarding of OpenSSH.
    Ssh,
    /// stunnel: TLS around each connection, to a server that can be reached.
    Stunnel,
}

impl Tunnel {
    pub(crate) const ALL: &'static [Self] = &[
        Self::Direct,
        Self::Keel,
        Self::KeelNoResume,
        Self::KeelSidecars,
        Self::RatholePlain,
        Self::RatholeTls,
        Self::RatholeNoise,
        Self::Bore,
        Self::Ssh,
        Self::Stunnel,
    ];

    /// Those whose speed is measured.
    pub(crate) const FAST: &'static [Self] = &[
        Self::Direct,
        Self::Keel,
        Self::KeelNoResume,
        Self::KeelSidecars,
        Self::RatholePlain,
        Self::RatholeTls,
        Self::RatholeNoise,
        Self::Stunnel,
    ];

    /// Those that are put through faults.
    pub(crate) const FAULTED: &'static [Self] = &[
        Self::KeelSidecars,
        Self::RatholePlain,
        Self::RatholeTls,
        Self::RatholeNoise,
        Self::Bore,
        Self::Ssh,
        Self::Stunnel,
    ];

    /// Whether the server's side dials out, so that it may stand behind a NAT.
    pub(crate) const fn reaches_out(self) -> bool {
        !matches!(self, Self::Direct | Self::Stunnel)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Keel => "keel",
            Self::KeelNoResume => "keel, resume off",
            Self::KeelSidecars => "keel, two sidecars",
            Self::RatholePlain => "rathole plain",
            Self::RatholeTls => "rathole TLS",
            Self::RatholeNoise => "rathole noise",
            Self::Bore => "bore",
            Self::Ssh => "ssh -R",
            Self::Stunnel => "stunnel",
        }
    }

    /// What it needs and this machine has not.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let rathole = matches!(
            self,
            Self::RatholePlain | Self::RatholeTls | Self::RatholeNoise
        );
        if rathole && peer("rathole").is_none() {
            return Some("no rathole on this machine (tests/compare installs it)");
        }
        if self == Self::Bore && peer("bore").is_none() {
            return Some("no bore on this machine (tests/compare installs it)");
        }
        if self == Self::Ssh
            && ["ssh", "sshd", "ssh-keygen"]
                .into_iter()
                .any(|name| need::find(name).is_none())
        {
            return Some("no OpenSSH on this machine (Debian: openssh-server)");
        }
        if self == Self::Stunnel && need::find("stunnel").is_none() {
            return Some("no stunnel on this machine (Debian: stunnel4)");
        }
        if matches!(self, Self::RatholeTls | Self::Stunnel) && need::find("openssl").is_none() {
            return Some("no openssl to make its certificate with");
        }
        None
    }

    /// Starts it between the applications of `place` and a server.
    ///
    /// # Errors
    /// If a part does not start.
    pub(crate) fn start(self, place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
        match self {
            Self::Direct => Ok(Running {
                entry: server,
                parts: Vec::new(),
                _folder: None,
            }),
            Self::Keel => keel::start(place, server, Ends::Router { resume: true }),
            Self::KeelNoResume => keel::start(place, server, Ends::Router { resume: false }),
            Self::KeelSidecars => keel::start(place, server, Ends::Sidecar),
            Self::RatholePlain => rathole::plain(place, server),
            Self::RatholeTls => rathole::tls(place, server),
            Self::RatholeNoise => rathole::noise(place, server),
            Self::Bore => peers::bore(place, server),
            Self::Ssh => peers::ssh(place, server),
            Self::Stunnel => peers::stunnel(place, server),
        }
    }
}

/// A tunnel that runs. Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Running {
    /// What applications connect to.
    pub(crate) entry: SocketAddr,
    /// The relay, which stands on the public side, is the first where there is one.
    parts: Vec<Part>,
    _folder: Option<tempfile::TempDir>,
}

/// One process, and how to start it again.
#[derive(Debug)]
struct Part {
    program: Program,
    process: Process,
}

impl Part {
    fn start(program: Program) -> anyhow::Result<Self> {
        Ok(Self {
            process: program.start()?,
            program,
        })
    }

    /// Starts it and waits until it says `word`.
    fn until(program: Program, word: &str) -> anyhow::Result<Self> {
        let mut part = Self::start(program)?;
        part.process.says(word, wait::SOON)?;
        Ok(part)
    }
}

impl Running {
    fn new(entry: SocketAddr, parts: Vec<Part>, folder: tempfile::TempDir) -> Self {
        Self {
            entry,
            parts,
            _folder: Some(folder),
        }
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.parts.iter().map(|part| &part.process)
    }

    /// Processor time of all its processes so far.
    ///
    /// # Errors
    /// If one is gone.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.processes()
            .map(|process| machine::cpu(process.pid()))
            .sum()
    }

    /// Resident memory of all its processes in KiB; none without any.
    ///
    /// # Errors
    /// If one is gone.
    pub(crate) fn resident(&self) -> anyhow::Result<Option<u64>> {
        if self.parts.is_empty() {
            return Ok(None);
        }
        let all: anyhow::Result<u64> = self.processes().map(Process::resident_kib).sum();
        all.map(Some)
    }

    /// What its processes said.
    pub(crate) fn log(&self) -> String {
        self.processes().map(Process::log).collect()
    }

    /// Kills the relay as the power would, with the processes that it has made for single sessions.
    ///
    /// # Errors
    /// If it is gone.
    pub(crate) fn kill_relay(&mut self) -> anyhow::Result<()> {
        let relay = self.parts.first_mut().context("no relay")?;
        let sessions = machine::descendants(relay.process.pid())?;
        relay.process.kill()?;
        for session in sessions {
            let pid = Pid::from_raw(i32::try_from(session)?);
            // It may have ended with its parent.
            let _gone = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Starts the relay again.
    ///
    /// # Errors
    /// If it does not start.
    pub(crate) fn relay_again(&mut self) -> anyhow::Result<()> {
        let relay = self.parts.first_mut().context("no relay")?;
        relay.process = relay.program.start()?;
        Ok(())
    }
}

/// A peer's binary: `$<NAME>` if that is set, else the one on the path.
fn peer(name: &str) -> Option<std::path::PathBuf> {
    match std::env::var_os(name.to_uppercase()) {
        Some(path) => Some(path.into()),
        None => need::find(name),
    }
}

fn openssl(words: &str) -> anyhow::Result<String> {
    let words = words.split(' ');
    Program::new("openssl").args(words).ok(wait::SOON)
}

/// A key and its own certificate for `localhost`.
fn self_signed(key: &Path, cert: &Path) -> anyhow::Result<()> {
    let (key, cert) = (key.display(), cert.display());
    openssl(&format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext \
         subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    ))?;
    Ok(())
}
