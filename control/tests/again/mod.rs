//! A test's program, started once more: what runs there can be stopped and killed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// In front of what the other process says when it is ready.
const READY: &str = "ready: ";

/// A process that runs; killed in the end.
pub(crate) struct Again {
    child: Child,
    /// What it prints; a pipe that nobody holds would end it.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Again {
    /// Starts the test of this name, with these variables in its environment; waits until it [says](ready) that it is ready, and gives
    /// back what else it says.
    pub(crate) async fn start(test: &str, variables: &[(&str, &OsStr)]) -> (Self, String) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = tokio::task::spawn_blocking(move || {
            let said = |line: String| Some(line.split_once(READY)?.1.to_owned());
            let said = output.find_map(|line| said(line.ok()?));
            (output, said)
        });
        let (output, said) = ready.await.unwrap();
        let again = Self {
            child,
            _output: output,
        };
        let said = said.unwrap_or_else(|| panic!("{test} did not start"));
        (again, said)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}

/// Says in the other process that it is ready.
pub(crate) fn ready(said: &str) {
    // One write, so that the line is whole or not there.
    let line = format!("{READY}{said}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
