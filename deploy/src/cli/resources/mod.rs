//! `keel get`, `apply`, `delete` and `watch`: the resources without kubectl.

mod apply;
mod documents;
mod kinds;
mod show;

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode, header};
use keel_control::api::ObjectMeta;
use keel_control::client::{Client, WatchEvent};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{NodeDir, access, answer, routers, table, tell};
use crate::errors::{Usage, chain};
use crate::process::say;
use kinds::{Further, Selected, SelectedParser};
use show::{Output, Shown};

pub(crate) use apply::{ApplyFlags, apply};

/// Objects that are asked for at a time.
const PAGE: usize = 500;
/// Largest answer that is read: a page.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// The namespace of kinds that have one.
#[derive(Debug, clap::Args)]
pub(crate) struct Namespace {
    /// Namespace, for kinds that have one [default: default]
    #[arg(short, long, value_name = "NS")]
    namespace: Option<keel_certs::Namespace>,
}

impl Namespace {
    fn name(&self) -> &str {
        self.namespace
            .as_ref()
            .map_or("default", keel_certs::Namespace::as_str)
    }
}

/// Flags of `keel get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  keel get routers
  keel get router edge-b -o yaml
  keel get router/edge-b router/edge-c
  keel get routers -l tier=edge -o wide
  keel get events -A")]
pub(crate) struct GetFlags {
    #[command(flatten)]
    node: NodeDir,
    #[command(flatten)]
    namespace: Namespace,
    /// What to show: KIND, or KIND/NAME
    #[arg(value_parser = SelectedParser, value_name = "KIND")]
    kind: Selected,
    /// Only those with these names, or more of them as KIND/NAME
    name: Vec<Further>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    all_namespaces: bool,
    /// Only those with these labels, e.g. tier=edge,site!=b
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "name")]
    selector: Option<String>,
    /// Only those with these fields, e.g. status.cluster=site-1
    #[arg(long, value_name = "FIELDS", conflicts_with = "name")]
    field_selector: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Flags of `keel delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  keel delete router edge-c
  keel delete events -n shop one two --ignore-not-found")]
pub(crate) struct DeleteFlags {
    #[command(flatten)]
    node: NodeDir,
    #[command(flatten)]
    namespace: Namespace,
    /// What to delete: KIND, or KIND/NAME
    #[arg(value_parser = SelectedParser, value_name = "KIND")]
    kind: Selected,
    /// The names, or more of them as KIND/NAME
    name: Vec<Further>,
    /// One that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
}

/// Flags of `keel watch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Goes on over restarts of the APIServer, and misses nothing. With -o json a line is one event.

Examples:
  keel watch routers
  keel watch frpservers -o json"
)]
pub(crate) struct WatchFlags {
    #[command(flatten)]
    node: NodeDir,
    #[command(flatten)]
    namespace: Namespace,
    /// What to watch
    #[arg(value_parser = SelectedParser, value_name = "KIND")]
    kind: Selected,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to show it; wide is for keel get
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

pub(crate) async fn get(flags: GetFlags) -> anyhow::Result<()> {
    let (kind, names) = (flags.kind.kind, flags.kind.names(&flags.name)?);
    // Of KIND/NAME clap does not know that it names one.
    if !names.is_empty()
        && (flags.all_namespaces || flags.selector.is_some() || flags.field_selector.is_some())
    {
        let text = "an object is named, so leave -A, -l and --field-selector out";
        return Err(Usage(text.to_owned()).into());
    }
    let client = client(&flags.node).await?;
    let namespace = (!flags.all_namespaces).then(|| flags.namespace.name());
    let path = kind.path(namespace);
    let shown = Shown::new(kind, flags.output, flags.all_namespaces);
    if !names.is_empty() {
        let mut objects = Vec::with_capacity(names.len());
        for name in &names {
            let path = format!("{path}/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
            let found = succeeded(&client, Method::GET, &path)
                .await
                .with_context(|| format!("cannot get {kind} {name}"));
            match found {
                Ok(object) => objects.push(object),
                Err(error) if names.len() == 1 => return Err(error),
                Err(error) => say(&format!("error: {error:#}")),
            }
        }
        let missing = names.len() - objects.len();
        answer(&match (names.len(), objects.pop()) {
            (_, None) => String::new(),
            (1, Some(one)) => shown.one(one)?,
            (_, Some(last)) => {
                objects.push(last);
                shown.all(objects)?
            }
        })?;
        return match missing {
            0 => Ok(()),
            missing => bail!("{missing} of {} cannot be had", names.len()),
        };
    }
    let mut query = format!("limit={PAGE}");
    for (key, value) in [
        ("labelSelector", &flags.selector),
        ("fieldSelector", &flags.field_selector),
    ] {
        if let Some(value) = value {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            query.push_str(&format!("&{key}={value}"));
        }
    }
    let mut objects = Vec::new();
    let mut next = String::new();
    loop {
        let mut page = succeeded(&client, Method::GET, &format!("{path}?{query}{next}"))
            .await
            .with_context(|| format!("cannot list the {}", kind.0.plural))?;
        if let Value::Array(items) = page["items"].take() {
            objects.extend(items);
        }
        match page["metadata"]["continue"].as_str() {
            None | Some("") => break,
            Some(token) => {
                let token = utf8_percent_encode(token, NON_ALPHANUMERIC);
                next = format!("&continue={token}");
            }
        }
    }
    answer(&shown.all(objects)?)
}

pub(crate) async fn delete(flags: DeleteFlags) -> anyhow::Result<()> {
    let (kind, names) = (flags.kind.kind, flags.kind.names(&flags.name)?);
    if names.is_empty() {
        return Err(Usage(format!(
            "name what is to be deleted: keel delete {kind} NAME"
        ))
        .into());
    }
    let client = client(&flags.node).await?;
    let path = kind.path(Some(flags.namespace.name()));
    let mut failed = 0;
    for name in &names {
        let path = format!("{path}/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        let (code, said) = call(&client, Method::DELETE, &path, None)
            .await
            .with_context(|| format!("cannot delete {kind} {name}"))?;
        if code.is_success() {
            answer(&format!("{kind} {name} {}\n", gone(&said)))?;
        } else if code != StatusCode::NOT_FOUND || !flags.ignore_not_found {
            failed += 1;
            say(&format!("error: {kind} {name}: {}", message(code, &said)));
        }
    }
    match failed {
        0 => Ok(()),
        failed => bail!("{failed} of {} could not be deleted", names.len()),
    }
}

pub(crate) async fn watch(flags: WatchFlags, stop: CancellationToken) -> anyhow::Result<()> {
    if flags.output == Output::Wide {
        return Err(Usage("keel watch has no -o wide".to_owned()).into());
    }
    let kind = flags.kind.kind;
    if !flags.kind.names(&[])?.is_empty() {
        return Err(Usage(format!(
            "keel watch shows all of a kind: write {}",
            kind.0.plural
        ))
        .into());
    }
    let admin = access::Admin::get(&flags.node.path(), None, None).await?;
    let client = admin.client()?;
    let mut fresh = std::pin::pin!(admin.keep_fresh());
    let namespace = (!flags.all_namespaces).then(|| flags.namespace.name());
    let mut events = client.watch_objects(&kind.path(namespace));
    let shown = Shown::new(kind, flags.output, flags.all_namespaces);
    let mut known = HashSet::new();
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            // Never ends.
            () = &mut fresh => continue,
            event = events.next() => event,
        };
        let text = match event {
            None => return Ok(()),
            Some(WatchEvent::Snapshot { routers: all, .. }) => {
                let now: HashSet<_> = all.iter().map(show::identity).collect();
                // Of what went while nothing was heard, no event is left.
                let mut text = String::new();
                for (namespace, name) in known.difference(&now) {
                    text += &shown.deleted(&ObjectMeta {
                        name: name.clone(),
                        namespace: Some(namespace.clone()).filter(|one| !one.is_empty()),
                        ..ObjectMeta::default()
                    })?;
                }
                known = now;
                text + &shown.snapshot(all)?
            }
            Some(WatchEvent::Applied(object)) => {
                let kind = match known.insert(show::identity(&object)) {
                    true => "ADDED",
                    false => "MODIFIED",
                };
                shown.event(kind, object)?
            }
            Some(WatchEvent::Deleted(meta)) => {
                known.remove(&(
                    meta.namespace.clone().unwrap_or_default(),
                    meta.name.clone(),
                ));
                shown.deleted(&meta)?
            }
            Some(WatchEvent::Synced(_)) => continue,
            Some(WatchEvent::Interrupted(error)) => {
                say(&format!("interrupted: {}; trying again", chain(&error)));
                continue;
            }
        };
        if tell(&text)?.is_break() {
            return Ok(());
        }
    }
}

async fn client(node: &NodeDir) -> anyhow::Result<Client> {
    access::Admin::get(&node.path(), None, None).await?.client()
}

/// Asks the API; the code and the JSON of its answer.
async fn call(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<(&str, Bytes)>,
) -> anyhow::Result<(StatusCode, Value)> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json");
    let mut bytes = Bytes::new();
    if let Some((media, body)) = body {
        request = request.header(header::CONTENT_TYPE, media);
        bytes = body;
    }
    let answer = client.request(request.body(bytes)?).await?;
    let code = answer.status();
    let body = keel_control::http::read(answer.into_body(), ANSWER_MAX).await?;
    Ok((code, serde_json::from_slice(&body).unwrap_or_default()))
}

/// The answer of a call that has to succeed.
async fn succeeded(client: &Client, method: Method, path: &str) -> anyhow::Result<Value> {
    let (code, said) = call(client, method, path, None).await?;
    if !code.is_success() {
        bail!(message(code, &said));
    }
    Ok(said)
}

/// What became of an object that was to be deleted: the server answers with a Status if it is gone, and with the object if that stays
/// until others let it go.
fn gone(said: &Value) -> String {
    let finalizers = said["metadata"]["finalizers"].as_array();
    let finalizers = finalizers.into_iter().flatten();
    let names: Vec<&str> = finalizers.filter_map(Value::as_str).collect();
    match names.is_empty() {
        true => "deleted".to_owned(),
        false => format!(
            "marked for deletion; it waits for its finalizers: {}",
            names.join(", ")
        ),
    }
}

/// What the server says is wrong. Kubernetes' Status says it in a sentence; anything else is shown by its number.
fn message(code: StatusCode, said: &Value) -> String {
    match said["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the server gave no reason ({code})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_that_stays_is_not_called_deleted() {
        let status = json!({"kind": "Status", "metadata": {}, "status": "Success"});
        assert_eq!(gone(&status), "deleted");
        let going = json!({"kind": "Router", "metadata": {"name": "a", "finalizers": ["x.org/a", "x.org/b"]}});
        assert_eq!(
            gone(&going),
            "marked for deletion; it waits for its finalizers: x.org/a, x.org/b"
        );
    }
}
