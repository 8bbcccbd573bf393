//! kubectl as a child process.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any step takes, short enough to find out.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The kubectl on the path.
pub(crate) fn on_the_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("kubectl"))
        .find(|file| file.is_file())
}

/// The kubectl of version 1.`minor`. Where several versions are installed, they lie as `kubectl.1.NN` beside the one on the path.
pub(crate) fn of_minor(minor: u32) -> Option<PathBuf> {
    let real = fs::canonicalize(on_the_path()?).ok()?;
    Some(real.with_file_name(format!("kubectl.1.{minor}"))).filter(|file| file.is_file())
}

pub(crate) struct Kubectl {
    pub(crate) program: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(self.folder.join("config"))
            .arg("--request-timeout=20s")
            .args(arguments);
        // Its cache of discovery goes below the home directory; nobody is asked anything.
        command
            .env("HOME", &self.folder)
            .env("KUBECACHEDIR", self.folder.join("cache"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that succeeds prints.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What a command that succeeds without a warning prints.
    #[track_caller]
    pub(crate) fn quiet(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = text(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "kubectl {arguments:?}: {}{errors}",
            text(&output.stdout)
        );
        text(&output.stdout)
    }

    /// What a command that fails complains about.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            !output.status.success(),
            "kubectl {arguments:?} succeeded: {}",
            text(&output.stdout)
        );
        text(&output.stderr)
    }

    /// Edits an object: what is shown in the editor goes through sed.
    #[track_caller]
    pub(crate) fn edit(&self, arguments: &[&str], script: &str) -> String {
        let output = self
            .command(arguments)
            .env("KUBE_EDITOR", format!("sed -i '{script}'"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self
            .command(arguments)
            .arg("--request-timeout=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (send, lines) = std::sync::mpsc::sync_channel(1000);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Running {
            child,
            lines,
            reader: Some(reader),
        }
    }
}

/// A kubectl that goes on; killed in the end.
pub(crate) struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Everything up to the line that holds `wanted`.
    #[track_caller]
    pub(crate) fn until(&self, wanted: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut seen = String::new();
        while let Ok(line) = self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            seen.push_str(&line);
            seen.push('\n');
            if line.contains(wanted) {
                return seen;
            }
        }
        panic!("{wanted:?} did not come: {seen}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut errors);
        }
        if !errors.is_empty() {
            eprintln!("{errors}");
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
