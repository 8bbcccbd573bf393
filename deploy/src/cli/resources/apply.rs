//! `keel apply`: resources from files, on the server's side, each by itself.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::builder::NonEmptyStringValueParser;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{Method, StatusCode};
use keel_control::client::Client;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::documents::{self, Document};
use super::{Namespace, answer, call, client, message};
use crate::cli::NodeDir;
use crate::errors::Usage;
use crate::process::{say, show};

/// Largest input of `keel apply`: what the API takes, times some hundred.
const INPUT_MAX: u64 = 256 * 1024 * 1024;
/// Resources on their way at the same time; they are answered in the order of the file.
const AT_ONCE: usize = 8;
/// From this many on the command says how far it is.
const MANY: usize = 50;
/// And this often, where nobody watches a terminal.
const SAY: Duration = Duration::from_secs(5);

/// Flags of `keel apply`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each resource is applied by itself, on the server's side: what the file no longer says and nobody else owns goes,
and what others own stays unless it is forced. One that is wrong is named with what to do, the others are applied,
and the exit status is 1. What only the server fills in (uid, resourceVersion, status, ...) is left out.

Examples:
  keel apply -f router.yaml
  keel apply -f routers.yaml -f frpserver.yaml --dry-run
  generate | keel apply -f - --field-manager generator --force-conflicts"
)]
pub(crate) struct ApplyFlags {
    #[command(flatten)]
    node: NodeDir,
    #[command(flatten)]
    namespace: Namespace,
    /// A file with resources as YAML or JSON, or - for standard input; may be given several times
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,
    /// Who owns the fields that are applied, where several programs write the same resources
    #[arg(long, value_name = "NAME", default_value = "keel", value_parser = NonEmptyStringValueParser::new())]
    field_manager: String,
    /// Take over fields that others own
    #[arg(long)]
    force_conflicts: bool,
    /// Have everything checked, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn apply(flags: ApplyFlags) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for path in flags.filename {
        let place = path.display().to_string();
        // Nobody may ever write to it: a signal must get through meanwhile.
        let read = tokio::task::spawn_blocking(move || input(&path)).await?;
        let text = read.with_context(|| format!("cannot read {place}"))?;
        found.extend(documents::read(&text, &place));
    }
    if found.is_empty() {
        return Err(Usage("there is no resource in what was given".to_owned()).into());
    }
    let how = How {
        query: format!(
            "fieldManager={}&force={}{}&fieldValidation=Strict",
            utf8_percent_encode(&flags.field_manager, NON_ALPHANUMERIC),
            flags.force_conflicts,
            if flags.dry_run { "&dryRun=All" } else { "" }
        ),
        note: if flags.dry_run { " (dry run)" } else { "" },
        namespace: flags.namespace.name().to_owned(),
        client: client(&flags.node).await?,
    };
    let all = found.len();
    match how.apply_all(found).await?.len() {
        0 => Ok(()),
        failed if failed == all => bail!("nothing could be applied"),
        failed => bail!("{failed} of {all} resources could not be applied; the others were"),
    }
}

fn input(path: &PathBuf) -> std::io::Result<String> {
    let mut text = String::new();
    match path.as_os_str() == "-" {
        true => std::io::stdin().take(INPUT_MAX).read_to_string(&mut text)?,
        false => std::fs::File::open(path)?
            .take(INPUT_MAX)
            .read_to_string(&mut text)?,
    };
    Ok(text)
}

/// How resources are applied.
struct How {
    client: Client,
    query: String,
    note: &'static str,
    /// The namespace of those that name none.
    namespace: String,
}

impl How {
    /// Applies what was found, says how it goes, and gives what went wrong.
    async fn apply_all(&self, found: Vec<Result<Document, String>>) -> anyhow::Result<Vec<String>> {
        let mut progress = Progress::new(found.len());
        let mut failed = Vec::new();
        for round in self.rounds(found) {
            let applied = stream::iter(round).map(|document| async {
                match document {
                    Ok(document) => self.apply(&document).await,
                    Err(why) => Err(why),
                }
            });
            let mut applied = std::pin::pin!(applied.buffered(AT_ONCE));
            while let Some(outcome) = applied.next().await {
                progress.clear();
                match outcome {
                    Ok(line) => answer(&line)?,
                    Err(why) => {
                        say(&format!("error: {why}"));
                        failed.push(why);
                    }
                }
                progress.done(failed.len());
            }
        }
        progress.clear();
        Ok(failed)
    }

    /// What may be applied at the same time: of an object that is there twice the last one is to win.
    fn rounds(&self, found: Vec<Result<Document, String>>) -> Vec<Vec<Result<Document, String>>> {
        let (mut rounds, mut seen) = (vec![Vec::new()], HashSet::new());
        for document in found {
            let what = document.as_ref().ok().map(|one| self.path(one));
            if what.is_some_and(|path| !seen.insert(path)) {
                rounds.push(Vec::new());
                seen.clear();
                seen.extend(document.as_ref().ok().map(|one| self.path(one)));
            }
            if let Some(round) = rounds.last_mut() {
                round.push(document);
            }
        }
        rounds
    }

    fn path(&self, document: &Document) -> String {
        let namespace = document.namespace.as_deref().unwrap_or(&self.namespace);
        format!("{}/{}", document.kind.path(Some(namespace)), document.name)
    }

    /// Applies one: what to say, or what is wrong and what to do about it.
    async fn apply(&self, document: &Document) -> Result<String, String> {
        let (kind, name) = (&document.kind, &document.name);
        let path = format!("{}?{}", self.path(document), self.query);
        let failed = |why: String| format!("{kind} {name}: {why}");
        // JSON is YAML, and the server checks it as it was written.
        let body =
            serde_json::to_vec(&document.object).map_err(|error| failed(error.to_string()))?;
        let media = "application/apply-patch+yaml";
        let sent = call(
            &self.client,
            Method::PATCH,
            &path,
            Some((media, Bytes::from(body))),
        )
        .await;
        let (code, said) = sent.map_err(|error| {
            failed(format!(
                "{error:#}; apply the file again, what is applied stays"
            ))
        })?;
        let what = match code {
            StatusCode::CREATED => "created",
            StatusCode::OK => "applied",
            _ => {
                return Err(failed(format!(
                    "{}{}",
                    message(code, &said),
                    remedy(code, &said)
                )));
            }
        };
        Ok(format!("{kind} {name} {what}{}\n", self.note))
    }
}

/// What to do about an answer, where it does not say so itself.
fn remedy(code: StatusCode, said: &Value) -> &'static str {
    match code.as_u16() {
        409 if said["details"]["causes"].is_array() => {
            "; leave these fields to their owners, or take them over with --force-conflicts"
        }
        400 | 422 => "; correct that in the file and apply it again",
        403 => "; an admin of the node may do this",
        413 => "; an object may have 1 MiB",
        429 | 500..=599 => "; apply the file again, what is applied stays",
        _ => "",
    }
}

/// Says how far a big apply is: on a terminal all the time, else now and then.
struct Progress {
    all: usize,
    done: usize,
    terminal: bool,
    said: Instant,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self {
            all,
            done: 0,
            terminal: std::io::stderr().is_terminal(),
            said: Instant::now(),
        }
    }

    fn done(&mut self, failed: usize) {
        self.done += 1;
        if self.all < MANY {
            return;
        }
        let (done, all) = (self.done, self.all);
        if self.terminal {
            show(&format!("{done} of {all}, {failed} failed\r"));
        } else if self.said.elapsed() >= SAY || done == all {
            self.said = Instant::now();
            say(&format!("{done} of {all} resources, {failed} failed"));
        }
    }

    /// Makes room for another line.
    fn clear(&self) {
        if self.terminal && self.all >= MANY {
            show("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests;
