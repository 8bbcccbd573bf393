//! Programs under test: started with their output in a file, watched by state, ended by process id.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::lab::Host;
use crate::wait;

/// The folder with the binaries of the profile that the running test was built in: `target/<profile>`.
///
/// # Errors
/// If the test does not run out of a target directory and `$KEEL_BIN_DIR` does not say where the binaries are.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("KEEL_BIN_DIR") {
        return Ok(PathBuf::from(named));
    }
    let test = std::env::current_exe()?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("the test runs outside a target directory; set KEEL_BIN_DIR")?;
    Ok(folder.to_path_buf())
}

/// A command line that is being put together.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Vec<u8>,
}

impl Program {
    /// One of the project's own binaries.
    ///
    /// # Errors
    /// If it has not been built: the tests start what `cargo build --workspace --bins` made.
    pub fn ours(name: &str) -> anyhow::Result<Self> {
        let path = bin_dir()?.join(name);
        anyhow::ensure!(
            path.is_file(),
            "{} is missing: run tests/run, or build the binaries in this profile",
            path.display()
        );
        Ok(Self::new(path))
    }

    /// Any other program, by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let name = Path::new(program)
            .file_name()
            .unwrap_or(program)
            .to_string_lossy()
            .into_owned();
        let found = crate::need::find(&name).filter(|_| !Path::new(program).is_absolute());
        let program = found.map_or_else(|| program.to_owned(), PathBuf::into_os_string);
        // The caller's own environment says nothing about the thing under test.
        let env = vec![
            ("KEEL_LOG_FORMAT".into(), "text".into()),
            ("LC_ALL".into(), "C.UTF-8".into()),
        ];
        Self {
            name,
            argv: vec![program],
            env,
            input: Vec::new(),
        }
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.argv
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Appends one argument.
    #[must_use]
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// What the program reads on its standard input (small: it is written before the output is read).
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Runs the program on that host: in its network namespace and with its `resolv.conf`.
    #[must_use]
    pub fn on(self, host: &Host) -> Self {
        self.behind(["ip", "netns", "exec", host.netns()])
    }

    /// Runs the program as a user without any right (uid and gid 65534, `nobody`).
    #[must_use]
    pub fn unprivileged(self) -> Self {
        self.behind([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
        ])
    }

    /// Puts another command in front, which ends in an `exec`: the process id stays that of the program.
    #[must_use]
    pub fn behind<const N: usize>(mut self, front: [&str; N]) -> Self {
        let mut argv: Vec<OsString> = front.into_iter().map(OsString::from).collect();
        argv.append(&mut self.argv);
        self.argv = argv;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]);
        for (name, _) in std::env::vars_os() {
            let ours = name.to_string_lossy();
            if ours.starts_with("KEEL_")
                || ours.starts_with("SIDECAR_")
                || ours.starts_with("POD_")
                || ours == "NODE_NAME"
            {
                command.env_remove(&name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end and gives back what it printed, whatever its status.
    ///
    /// # Errors
    /// If it cannot be started, or does not end within `bound` (it is killed).
    pub fn output(&self, bound: Duration) -> anyhow::Result<Finished> {
        let folder = tempfile::tempdir()?;
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        let mut child = self.spawn(File::create(&out)?, File::create(&err)?)?;
        let ended = wait::until_some(&format!("{} ends", self.name), bound, || {
            match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("still running".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        if ended.is_err() {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("kill what did not end")?;
        }
        let output = |status| Output {
            status,
            stdout: std::fs::read(&out).unwrap_or_default(),
            stderr: std::fs::read(&err).unwrap_or_default(),
        };
        match ended {
            Ok(status) => Ok(Finished {
                name: self.name.clone(),
                output: output(status),
            }),
            Err(late) => {
                let said = Finished {
                    name: self.name.clone(),
                    output: output(ExitStatus::from_raw(9)),
                };
                Err(late.context(format!("so far: {}{}", said.stdout(), said.stderr())))
            }
        }
    }

    /// Runs the program to its end, which must be a success; its standard output.
    ///
    /// # Errors
    /// If it cannot be started, takes longer than `bound`, or fails (with what it said).
    pub fn ok(&self, bound: Duration) -> anyhow::Result<String> {
        let finished = self.output(bound)?;
        anyhow::ensure!(
            finished.output.status.success(),
            "{:?} ended with {}: {}{}",
            self.argv,
            finished.output.status,
            finished.stderr(),
            finished.stdout()
        );
        Ok(finished.stdout())
    }

    /// Starts the program and leaves it running.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> anyhow::Result<Process> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let out = File::create(&log)?;
        let child = self.spawn(out.try_clone()?, out)?;
        Ok(Process {
            name: self.name.clone(),
            child,
            log,
            _folder: folder,
        })
    }

    fn spawn(&self, out: File, err: File) -> anyhow::Result<Child> {
        let mut command = self.command();
        command.stdout(out).stderr(err);
        command.stdin(if self.input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let mut child = command
            .spawn()
            .with_context(|| format!("start {:?}", self.argv))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&self.input).context("write the input")?;
        }
        Ok(child)
    }
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Finished {
    name: String,
    output: Output,
}

impl Finished {
    /// The exit status, `None` if a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Standard output as text.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Checks that the program failed with this status and that its complaint holds every one of these words
    /// (in any case): an error names what was wrong and what to do.
    ///
    /// # Errors
    /// What was different.
    pub fn complains(&self, code: i32, words: &[&str]) -> anyhow::Result<()> {
        let said = format!("{}{}", self.stderr(), self.stdout());
        anyhow::ensure!(
            self.code() == Some(code),
            "{} ended with {} instead of {code}: {said}",
            self.name,
            self.output.status
        );
        let lower = said.to_lowercase();
        for word in words {
            anyhow::ensure!(
                lower.contains(&word.to_lowercase()),
                "{} does not say {word:?}: {said}",
                self.name
            );
        }
        Ok(())
    }
}

/// A running program. Dropping it kills it and waits for it; a failing test then prints the end of its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it printed so far, both streams.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log holds `words`.
    ///
    /// # Errors
    /// If it does not within `bound`, or the program ends first.
    pub fn says(&mut self, words: &str, bound: Duration) -> anyhow::Result<()> {
        let what = format!("{} says {words:?}", self.name);
        let mut ended = false;
        let heard = wait::until(&what, bound, || {
            let gone = !self.is_running();
            // Looked at after the state: a program that ends has written all its lines.
            let heard = self.log().contains(words);
            ended = gone && !heard;
            heard || ended
        });
        anyhow::ensure!(!ended, "{what}: it ended instead: {}", self.log());
        heard.with_context(|| self.log())
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it still runs after `bound`.
    pub fn end(&mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let ended = wait::until_some(&what, bound, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        ended.with_context(|| self.log())
    }

    /// Sends `signal` again and again until the program has ended, as an impatient person would.
    ///
    /// # Errors
    /// If it is still there after `bound`.
    pub fn end_by(&mut self, signal: Signal, bound: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends by {signal}", self.name);
        let ended = wait::until_some(&what, bound, || {
            self.signal(signal).map_err(|error| error.to_string())?;
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("still running".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        ended.with_context(|| self.log())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("process ids fit")?;
        nix::sys::signal::kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("{signal} to {}", self.name))
    }

    /// Ends it as the power would: SIGKILL.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.end(wait::SOON).map(drop)
    }

    /// Asks it to stop and expects status 0.
    ///
    /// # Errors
    /// If it does not stop within `bound`, or not cleanly.
    pub fn stop(&mut self, bound: Duration) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.end(bound)?;
        anyhow::ensure!(
            status.success(),
            "{} stopped with {status}: {}",
            self.name,
            self.log()
        );
        Ok(())
    }

    /// How many files it holds open, sockets included.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn open_files(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Processor time that it has used, all its threads together.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        /// Of the kernel's clock for this, on every architecture (`USER_HZ`).
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // Behind the name, which may hold anything: state, ten others, then user and system time.
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(TICK * ticks)
    }

    /// Resident memory in KiB (`VmRSS`).
    ///
    /// # Errors
    /// If the process is gone.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it ended by itself, which is what is wanted.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().rev().nth(6_000).map_or(0, |(at, _)| at);
            eprintln!(
                "--- the end of the log of {} ---\n{}",
                self.name,
                &log[from..]
            );
        }
    }
}
