//! `keel get`, `apply`, `delete` and `watch`: the resources without kubectl.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use keel_certs::NodeName;
use keel_control::api::{GROUP, PLURAL, Router, VERSION};
use keel_control::client::{Client, WatchEvent, WatchFrom};
use keel_control::http::Body;
use tokio_util::sync::CancellationToken;

use super::{NodeDir, access, answer, routers};
use crate::errors::{Usage, chain};
use crate::settings::describe;

/// The kinds there are.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// The routers of all nodes
    #[value(alias = "router")]
    Routers,
}

/// How resources are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table
    Table,
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Flags of `keel get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel get routers\n  keel get router edge-b -o yaml")]
pub(crate) struct GetFlags {
    #[command(flatten)]
    node: NodeDir,
    /// What to show
    kind: Kind,
    /// Only the one with this name
    name: Option<NodeName>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Flags of `keel apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel apply -f router.yaml")]
pub(crate) struct ApplyFlags {
    #[command(flatten)]
    node: NodeDir,
    /// A file with resources as YAML or JSON, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
}

/// Flags of `keel delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel delete router edge-c")]
pub(crate) struct DeleteFlags {
    #[command(flatten)]
    node: NodeDir,
    /// What to delete
    kind: Kind,
    /// Its name
    name: NodeName,
}

/// Flags of `keel watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel watch routers")]
pub(crate) struct WatchFlags {
    #[command(flatten)]
    node: NodeDir,
    /// What to watch
    kind: Kind,
}

pub(crate) async fn get(flags: GetFlags) -> anyhow::Result<()> {
    let Kind::Routers = flags.kind;
    let client = client(&flags.node).await?;
    let mut found = match &flags.name {
        Some(name) => vec![
            client
                .get_router(name)
                .await
                .with_context(|| format!("cannot get router {name}"))?,
        ],
        None => {
            client
                .list_routers()
                .await
                .context("cannot list the routers")?
                .routers
        }
    };
    // Who owns which field is more than all the rest, and of no use to a reader: kubectl leaves it out too.
    for router in &mut found {
        router.metadata.managed_fields.clear();
    }
    let text = match flags.output {
        Output::Table | Output::Wide if found.is_empty() => "no routers yet\n".to_owned(),
        Output::Table => routers::table(&found, false, SystemTime::now()),
        Output::Wide => routers::table(&found, true, SystemTime::now()),
        Output::Json if flags.name.is_some() => serde_json::to_string_pretty(&found[0])? + "\n",
        Output::Json => serde_json::to_string_pretty(&list(&found))? + "\n",
        Output::Yaml if flags.name.is_some() => serde_saphyr::to_string(&found[0])?,
        Output::Yaml => serde_saphyr::to_string(&list(&found))?,
    };
    answer(&text)
}

fn list(found: &[Router]) -> serde_json::Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": found })
}

/// Largest input of `keel apply`: what the API takes, and some documents of it.
const INPUT_MAX: u64 = 16 * 1024 * 1024;

pub(crate) async fn apply(flags: ApplyFlags) -> anyhow::Result<()> {
    let mut text = String::new();
    let place = flags.filename.display().to_string();
    let read = match place.as_str() {
        "-" => std::io::stdin().take(INPUT_MAX).read_to_string(&mut text),
        _ => std::fs::File::open(&flags.filename)
            .and_then(|file| file.take(INPUT_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {place}"))?;
    // All of it is understood before any of it is applied.
    let routers = routers_in(&text).map_err(|error| Usage(format!("{place}: {error}")))?;
    let client = client(&flags.node).await?;
    for (node, document) in routers {
        let what = format!("router {node}");
        answer(&format!(
            "{what} {}\n",
            apply_one(&client, &node, &document)
                .await
                .with_context(|| format!("cannot apply {what}"))?
        ))?;
    }
    Ok(())
}

/// The Routers of all documents, lists taken apart, or what is wrong with the first that is none.
fn routers_in(text: &str) -> Result<Vec<(NodeName, serde_json::Value)>, String> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let (line, reason) = describe(&error);
        format!("line {line}: {reason}")
    })?;
    let mut routers = Vec::new();
    for mut document in documents {
        if document.is_null() {
            continue;
        }
        if !matches!(document["kind"].as_str(), Some("List" | "RouterList")) {
            routers.push(router(document)?);
            continue;
        }
        let serde_json::Value::Array(items) = document["items"].take() else {
            return Err("a List without items".to_owned());
        };
        for mut item in items {
            // The items of a RouterList need not say what they are.
            if document["kind"] == "RouterList" && item.is_object() {
                item["kind"] = "Router".into();
                item["apiVersion"] = format!("{GROUP}/{VERSION}").into();
            }
            routers.push(router(item)?);
        }
    }
    if routers.is_empty() {
        return Err("there is no resource in it".to_owned());
    }
    Ok(routers)
}

fn router(document: serde_json::Value) -> Result<(NodeName, serde_json::Value), String> {
    let kind = document["kind"].as_str().unwrap_or_default();
    if kind != "Router" {
        return Err(format!("kind {kind:?} is not known; there is Router"));
    }
    let version = document["apiVersion"].as_str().unwrap_or_default();
    if version != format!("{GROUP}/{VERSION}") {
        return Err(format!(
            "apiVersion {version:?} is not known; a Router has {GROUP}/{VERSION}"
        ));
    }
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    let node = name
        .parse()
        .map_err(|error| format!("metadata.name {name:?}: {}", chain(&error)))?;
    Ok((node, document))
}

/// Merges the document into the object that is there, or creates it.
///
/// The document is sent as it was written: the server checks it strictly, so a mistyped field is found and not lost here.
async fn apply_one(
    client: &Client,
    node: &NodeName,
    document: &serde_json::Value,
) -> anyhow::Result<&'static str> {
    let all = format!("/apis/{GROUP}/{VERSION}/{PLURAL}");
    let merged = send(
        client,
        Method::PATCH,
        &format!("{all}/{node}"),
        "application/merge-patch+json",
        document,
    )
    .await?;
    if merged.status() != StatusCode::NOT_FOUND {
        return accepted(merged).await.map(|()| "configured");
    }
    accepted(send(client, Method::POST, &all, "application/json", document).await?)
        .await
        .map(|()| "created")
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    kind: &str,
    document: &serde_json::Value,
) -> anyhow::Result<Response<Body>> {
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}?fieldValidation=Strict"))
        .header(header::CONTENT_TYPE, kind)
        .body(Bytes::from(serde_json::to_vec(document)?))?;
    Ok(client.request(request).await?)
}

/// Largest answer that is read for its message.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

async fn accepted(answer: Response<Body>) -> anyhow::Result<()> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let body = keel_control::http::read(answer.into_body(), ANSWER_MAX).await?;
    // Kubernetes' Status says it in a sentence; anything else is shown by its number.
    let said: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let message = said
        .as_ref()
        .and_then(|said| said["message"].as_str())
        .unwrap_or("the server gave no reason");
    bail!("{message} ({status})")
}

pub(crate) async fn delete(flags: DeleteFlags) -> anyhow::Result<()> {
    let Kind::Routers = flags.kind;
    let name = &flags.name;
    client(&flags.node)
        .await?
        .delete_router(name)
        .await
        .with_context(|| format!("cannot delete router {name}"))?;
    answer(&format!("router {name} deleted\n"))
}

pub(crate) async fn watch(flags: WatchFlags, stop: CancellationToken) -> anyhow::Result<()> {
    let Kind::Routers = flags.kind;
    let client = client(&flags.node).await?;
    let mut events = client.watch_routers(WatchFrom::Snapshot);
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        match event {
            None => return Ok(()),
            Some(WatchEvent::Snapshot { routers: all, .. }) => {
                answer(&routers::table(&all, false, SystemTime::now()))?
            }
            Some(WatchEvent::Applied(router)) => {
                let table = routers::table(&[router], false, SystemTime::now());
                // The header was printed with the snapshot.
                answer(table.split_once('\n').map_or("", |(_, row)| row))?;
            }
            Some(WatchEvent::Deleted(name)) => answer(&format!("{name}   deleted\n"))?,
            Some(WatchEvent::Synced(_)) => {}
            Some(WatchEvent::Interrupted(error)) => {
                eprintln!("interrupted: {}; trying again", chain(&error))
            }
        }
    }
}

async fn client(node: &NodeDir) -> anyhow::Result<Client> {
    access::Admin::get(&node.path(), None, None).await?.client()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: edge.example.com/v1\nkind: Router\n";

    #[test]
    fn documents_and_lists_are_understood_as_a_whole() {
        let two = format!("{HEAD}metadata: {{name: a}}\n---\n{HEAD}metadata: {{name: b}}\n---\n");
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a"}},
            {"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "b"}}]}"#;
        let own = "kind: RouterList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]";
        for text in [&two, list, own] {
            let names: Vec<_> = routers_in(text)
                .unwrap()
                .iter()
                .map(|(node, _)| node.to_string())
                .collect();
            assert_eq!(names, ["a", "b"]);
        }
        for (tail, word) in [
            ("---\nkind: Nope\n", "Nope"),
            ("---\nkind: Router\n", "apiVersion"),
            ("---\nkind: List\n", "items"),
            ("---\nkind: List\nitems: [1]\n", "kind"),
            ("---\na: 1\na: 2\n", "duplicate"),
        ] {
            let error = routers_in(&(two.clone() + tail)).unwrap_err();
            assert!(error.contains(word) && !error.contains("Policy"), "{error}");
        }
        assert!(routers_in("---\n").unwrap_err().contains("no resource"));
    }
}
