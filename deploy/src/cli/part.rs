//! The part binaries: the flags of `keel up`, less those that mean nothing to the part.

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Args as _, FromArgMatches as _};
use tokio_util::sync::CancellationToken;

use crate::process;
use crate::settings::{NodeFlags, NodeSettings, Part, environment};

/// Name, purpose and example of a part.
struct About {
    name: &'static str,
    about: &'static str,
    example: &'static str,
}

fn about(part: Part) -> About {
    match part {
        Part::Node => About {
            name: "keel up",
            about: "A whole node in one process",
            example: "keel up",
        },
        Part::ApiServer => About {
            name: "keel-apiserver",
            about: "The APIServer of a node: owns its data directory, its identities and its local sockets",
            example: "Example:\n  keel-apiserver --node-name a --apiserver-listen 0.0.0.0:7443 --advertise a.example.net:7000",
        },
        Part::Router => About {
            name: "keel-router",
            about: "The Router of a node; gets its identity from the APIServer's admin.sock",
            example: "Example:\n  keel-router --advertise a.example.net:7000",
        },
        Part::Syncer => About {
            name: "keel-syncer",
            about: "The Syncer of a node; gets its identity from the APIServer's admin.sock",
            example: "Example:\n  keel-syncer --peer b=b.example.net:7443",
        },
    }
}

fn command(part: Part) -> clap::Command {
    let about = about(part);
    let mut command = NodeFlags::augment_args(clap::Command::new(about.name))
        .version(env!("CARGO_PKG_VERSION"))
        .about(about.about)
        .after_help(about.example);
    for &flag in part.foreign_flags() {
        command = command.mut_arg(flag, |arg| arg.hide(true));
    }
    command
}

/// Parses the command line of `part`, runs it with the resolved settings and gives the exit code.
pub fn main<F, R>(part: Part, run: F) -> ExitCode
where
    F: FnOnce(NodeSettings, CancellationToken) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut command = command(part);
    let matches = environment::matches(&mut command);
    // One environment may serve all parts, so a foreign variable is fine; a foreign flag is a mistake.
    let given = |id: &&&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if let Some(id) = part.foreign_flags().iter().find(given) {
        let flag = id.replace('_', "-");
        let text = format!(
            "--{flag} means nothing to {}; see --help\n",
            about(part).name
        );
        command
            .error(clap::error::ErrorKind::UnknownArgument, text)
            .exit();
    }
    let flags = match NodeFlags::from_arg_matches(&matches) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    if let Err(error) = process::start_log("info") {
        return process::report(&error.into());
    }
    match process::node_settings(flags) {
        Ok(mut settings) => process::run(process::NODE_THREADS, |stop| {
            settings.drain.hurry = stop.hurry;
            run(settings, stop.asked)
        }),
        Err(error) => process::report(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_foreign_flag_exists() {
        for part in [Part::Node, Part::ApiServer, Part::Router, Part::Syncer] {
            command(part).debug_assert();
        }
    }

    #[test]
    fn help_of_a_part_shows_its_own_flags_only() {
        let help = command(Part::Syncer).render_long_help().to_string();
        assert!(
            help.contains("--peer") && !help.contains("--router-listen"),
            "{help}"
        );
    }
}
