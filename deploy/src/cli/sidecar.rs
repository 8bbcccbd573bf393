//! The command line of `keel-sidecar`.

use std::process::ExitCode;

use clap::{FromArgMatches as _, Parser};

use crate::errors::Usage;
use crate::settings::{SidecarFlags, environment};
use crate::{process, run};

/// Services of other networks, here by name; services of here, there.
#[derive(Debug, Parser)]
#[command(
    name = "keel-sidecar",
    version,
    after_help = "Examples:
  keel-sidecar --mapped-services mysql,redis
  keel-sidecar --published-services web=127.0.0.1:8080,mysql=127.0.0.1:3306
  keel-sidecar --mapped-services db=mysql.shop:3306 --dns-addr 127.0.0.2:5353"
)]
struct Command {
    #[command(flatten)]
    flags: SidecarFlags,
    /// Run a command with the names resolving: not built yet
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `keel-sidecar` and gives its exit code.
pub fn main() -> ExitCode {
    let matches = environment::matches(&mut <Command as clap::CommandFactory>::command());
    let command = match Command::from_arg_matches(&matches) {
        Ok(command) => command,
        Err(error) => error.exit(),
    };
    if let Err(error) = process::start_log("info") {
        return process::report(&error.into());
    }
    if !command.command.is_empty() {
        let text = "running a command with the names resolving is not built yet: start the sidecar without `-- COMMAND`, and point resolv.conf at its DNS";
        return process::report(&Usage(text.to_owned()).into());
    }
    run::one_arena();
    match process::sidecar_settings(command.flags) {
        Ok(mut settings) => process::run(1, |stop| {
            settings.config.stop_grace.hurry = stop.hurry;
            run::sidecar(settings, stop.asked)
        }),
        Err(error) => process::report(&error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
        let all = [
            "keel-sidecar",
            "--mapped-services",
            "mysql,redis",
            "--published-services",
            "web=127.0.0.1:8080",
            "--ip-range",
            "127.0.66.0/24",
            "--dns-addr",
            "127.0.0.2:53",
            "--dns-upstream",
            "10.0.0.2,10.0.0.3",
            "--apiserver",
            "https://127.0.0.1:7443",
            "--join",
            "@token",
            "--identity-dir",
            "/i",
            "--state-dir",
            "/s",
            "--config-dir",
            "/etc/servicekeel",
            "--metrics-addr",
            "127.0.0.1:1080",
            "--",
            "curl",
            "-v",
            "http://web",
        ];
        let command = Command::try_parse_from(all).unwrap();
        assert_eq!(command.flags.mapped_services, ["mysql", "redis"]);
        assert_eq!(command.command.len(), 3);
    }
}
