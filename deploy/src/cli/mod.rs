//! The `keel` command.

pub(crate) mod access;
mod flows;
mod kubeconfig;
pub mod part;
mod rates;
mod resources;
mod routers;
pub mod sidecar;
mod status;
mod table;
mod token;
mod up;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::settings::{NodeFlags, environment};
use crate::{process, quickstart};

/// Services of other networks, here by name.
#[derive(Debug, Parser)]
#[command(
    name = "keel",
    version,
    propagate_version = true,
    after_help = "Examples:
  keel quickstart                               two nodes on this machine, real services across them
  keel up --advertise a.example.net:7000        a node that others reach
  keel token create --node b > token            a token with which node b joins"
)]
struct Keel {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show it off: two nodes on loopback, real services across them, proved step by step
    Quickstart(quickstart::Flags),
    /// Run a whole node: APIServer, Router and Syncer in one process
    #[command(after_help = "Examples:
  keel up                                                      a node of its own on this machine
  keel up --node-name a --apiserver-listen 0.0.0.0:7443 --advertise a.example.net:7000
                                                               a node that others join and reach
  keel up --node-name b --join @token                          a node behind NAT that joins it")]
    Up(Box<NodeFlags>),
    /// Make, list and revoke join tokens
    Token(token::Flags),
    /// Print a kubeconfig for kubectl, with everything embedded
    Kubeconfig(kubeconfig::Flags),
    /// Show resources
    Get(resources::GetFlags),
    /// Create or change resources from files of YAML or JSON
    Apply(resources::ApplyFlags),
    /// Delete resources
    Delete(resources::DeleteFlags),
    /// Show resources as they change, until Ctrl-C
    Watch(resources::WatchFlags),
    /// Show what this node is and whom it sees
    Status(status::Flags),
    /// Print the completions for a shell
    #[command(
        after_help = "Example:\n  keel completions bash > ~/.local/share/bash-completion/completions/keel"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which node a command talks to.
#[derive(Debug, Clone, clap::Args)]
struct NodeDir {
    /// Data directory of the node on this machine [default: $KEEL_DATA_DIR, /var/lib/keel for root, else ~/.local/share/keel]
    #[arg(long, env = "KEEL_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

impl NodeDir {
    fn path(&self) -> PathBuf {
        self.data_dir
            .clone()
            .unwrap_or_else(process::default_data_dir)
    }
}

/// Runs the `keel` command and gives its exit code.
pub fn main() -> ExitCode {
    let keel = match Keel::from_arg_matches(&environment::matches(&mut Keel::command())) {
        Ok(keel) => keel,
        Err(error) => error.exit(),
    };
    // A node logs what it does; a command that answers a question only says what is wrong.
    let log = match keel.command {
        Command::Up(_) => "info",
        _ => "warn",
    };
    if let Err(error) = process::start_log(log) {
        return process::report(&error.into());
    }
    match keel.command {
        Command::Quickstart(flags) => process::run(process::NODE_THREADS, |stop| {
            quickstart::run(flags, stop.asked)
        }),
        Command::Up(flags) => process::run(process::NODE_THREADS, |stop| up::run(*flags, stop)),
        Command::Token(flags) => process::command(|| token::run(flags)),
        Command::Kubeconfig(flags) => process::command(|| kubeconfig::run(flags)),
        Command::Get(flags) => process::command(|| resources::get(flags)),
        Command::Apply(flags) => process::command(|| resources::apply(flags)),
        Command::Delete(flags) => process::command(|| resources::delete(flags)),
        Command::Watch(flags) => process::run(1, |stop| resources::watch(flags, stop.asked)),
        Command::Status(flags) => process::command(|| status::run(flags)),
        Command::Completions { shell } => {
            // Into memory: what is asked to write itself to a full disk panics.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Keel::command(), "keel", &mut script);
            let written = answer(&String::from_utf8_lossy(&script));
            written.map_or_else(|error| process::report(&error), |()| ExitCode::SUCCESS)
        }
    }
}

/// Writes an answer to standard output. A reader that went away (`| head`) is no error.
fn answer(text: &str) -> anyhow::Result<()> {
    tell(text).map(|_| ())
}

/// As [`answer`], for what goes on: breaks off if the reader went away.
fn tell(text: &str) -> anyhow::Result<ControlFlow<()>> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        other => Ok(ControlFlow::Continue(other?)),
    }
}

/// `keel apply --data-dir DIR -f FILE`, in this process.
#[cfg(test)]
pub(crate) async fn apply(dir_and_file: &[&std::ffi::OsStr; 2]) -> anyhow::Result<()> {
    let [dir, file] = dir_and_file.map(std::ffi::OsStr::to_owned);
    let words = ["keel", "apply", "--data-dir"].map(std::ffi::OsString::from);
    let keel = Keel::try_parse_from(words.into_iter().chain([dir, "-f".into(), file]))?;
    match keel.command {
        Command::Apply(flags) => resources::apply(flags).await,
        other => anyhow::bail!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Keel::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example_or_no_flags() {
        for command in Keel::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
        for name in ["get", "apply", "delete", "watch"] {
            let help = Keel::command()
                .find_subcommand_mut(name)
                .unwrap()
                .render_long_help();
            assert!(help.to_string().contains("Examples:"), "{name}");
        }
    }

    #[test]
    fn an_empty_name_does_not_mean_all_of_a_kind() {
        for words in [
            ["keel", "get", "routers", ""],
            ["keel", "delete", "routers", ""],
            ["keel", "delete", "events", " "],
        ] {
            let error = Keel::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
        let several = ["keel", "delete", "routers", "a", ""];
        let error = Keel::try_parse_from(several).unwrap_err().to_string();
        assert!(error.contains("a name is empty"), "{error}");
        assert!(Keel::try_parse_from(["keel", "get", "routers", "a", "b"]).is_ok());
    }

    #[test]
    fn kinds_are_named_as_in_kubectl_and_completed() {
        for kind in [
            "routers",
            "router",
            "rt",
            "frpservers",
            "namespaces",
            "ns",
            "events",
            "ev",
            "Router",
            "router/a",
        ] {
            assert!(
                Keel::try_parse_from(["keel", "get", kind]).is_ok(),
                "{kind}"
            );
        }
        let unknown = Keel::try_parse_from(["keel", "get", "pods"]).unwrap_err();
        assert!(unknown.to_string().contains("frpservers"), "{unknown}");
        let mut completions = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut Keel::command(),
            "keel",
            &mut completions,
        );
        let completions = String::from_utf8(completions).unwrap();
        assert!(completions.contains("frpservers") && completions.contains("--field-manager"));
    }
}
