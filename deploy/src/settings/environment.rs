//! What the environment says to every command: a variable that is set and empty says nothing, as manifests leave them.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, Command};

use crate::process::say;

/// Parses the process's arguments and environment; ends the process with a message if they are wrong.
pub(crate) fn matches(command: &mut Command) -> ArgMatches {
    *command = without_silent(std::mem::take(command), &|name| {
        std::env::var_os(name).is_some_and(|value| is_silent(&value))
    });
    match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => {
            let variable = blamed(command, &error).filter(|name| std::env::var_os(name).is_some());
            if let Some(name) = variable {
                say(&format!("note: {} is set", name.to_string_lossy()));
            }
            error.exit()
        }
    }
}

/// The variable of the flag that an error is about: whoever has set it in a manifest looks for a flag that he never gave.
fn blamed(command: &Command, error: &clap::Error) -> Option<OsString> {
    let ContextValue::String(flag) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let flag = flag.strip_prefix("--")?.split([' ', '=']).next();
    let own = command.get_arguments().find(|arg| arg.get_long() == flag);
    match own {
        Some(arg) => arg.get_env().map(OsStr::to_owned),
        None => command
            .get_subcommands()
            .find_map(|inner| blamed(inner, error)),
    }
}

/// The value of a variable, if it says something.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .filter(|value| !is_silent(value.as_ref()))
}

fn is_silent(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.trim().is_empty())
}

/// `command` and its subcommands without the variables that are `silent`.
fn without_silent(command: Command, silent: &dyn Fn(&OsStr) -> bool) -> Command {
    command
        .mut_args(|arg| match arg.get_env() {
            Some(name) if silent(name) => arg.env(None::<&str>),
            _ => arg,
        })
        .mut_subcommands(|command| without_silent(command, silent))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn the_variable_of_a_flag_is_found_in_any_command() {
        let arg = Arg::new("rate")
            .long("rate")
            .env(SET)
            .value_parser(clap::value_parser!(u8));
        let inner = Command::new("inner").arg(arg);
        let mut command = Command::new("outer").subcommand(inner);
        let error = command
            .try_get_matches_from_mut(["outer", "inner"])
            .unwrap_err();
        assert_eq!(blamed(&command, &error).unwrap(), SET);
    }

    /// A variable that every test has.
    const SET: &str = "CARGO_MANIFEST_DIR";

    fn parsed(silent: bool, args: &[&str]) -> Option<String> {
        let arg = Arg::new("dir").long("dir").env(SET).global(true);
        let inner = Command::new("inner").arg(Arg::new("own").long("own").env(SET));
        let command = Command::new("outer").arg(arg).subcommand(inner);
        let command = without_silent(command, &|name| silent && name == SET);
        let matches = command.try_get_matches_from(args).unwrap();
        let (matches, id) = match matches.subcommand() {
            Some((_, inner)) => (inner, "own"),
            None => (&matches, "dir"),
        };
        matches.get_one::<String>(id).cloned()
    }

    #[test]
    fn a_silent_variable_is_not_set_in_any_command() {
        for args in [["outer"].as_slice(), &["outer", "inner"]] {
            assert!(parsed(false, args).is_some());
            assert_eq!(parsed(true, args), None);
        }
        assert_eq!(
            parsed(true, &["outer", "--dir", "d"]).as_deref(),
            Some("d"),
            "the flag itself stays"
        );
        assert!(is_silent("".as_ref()) && is_silent(" \n".as_ref()) && !is_silent("0".as_ref()));
    }
}
