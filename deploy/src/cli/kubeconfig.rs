//! `keel kubeconfig`: everything that kubectl needs, in one file on standard output.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use data_encoding::BASE64;
use keel_certs::{LiveIdentity, MIN_LIFE, UserName};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{NodeDir, access, answer};
use crate::process::say;
use crate::settings::{Span, within};

/// Flags of `keel kubeconfig`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  keel kubeconfig > kubeconfig && kubectl --kubeconfig kubeconfig get routers"
)]
pub(crate) struct Flags {
    #[command(flatten)]
    node: NodeDir,
    /// How long the certificate in it is good for
    #[arg(long, value_name = "TIME", default_value = "7d")]
    ttl: Span,
    /// Name of the admin in it [default: your user name]
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
    /// The APIServer's address in it, if kubectl runs elsewhere [default: the address on this machine]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<keel_fabric::quic::HostPort>,
}

/// What an admin's certificate may live.
const TTL: (Duration, Duration) = (MIN_LIFE, Duration::from_secs(30 * 24 * 3600));

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let ttl = within(flags.ttl, "--ttl", TTL.0, TTL.1)?;
    let admin = access::Admin::get(&flags.node.path(), flags.user, Some(ttl)).await?;
    let server = flags.server.unwrap_or(admin.server);
    answer(&render(
        &admin.live,
        &server.to_string(),
        admin.info.node.as_str(),
    )?)?;
    say(&format!(
        "valid until {}; holds a private key, so keep it to yourself",
        rfc3339(admin.live.not_after())
    ));
    Ok(())
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    let whole = OffsetDateTime::from(at)
        .replace_nanosecond(0)
        .unwrap_or_else(|_| OffsetDateTime::from(at));
    // Only years beyond 9999 have no such form.
    whole
        .format(&Rfc3339)
        .unwrap_or_else(|_| "unknown".to_owned())
}

fn render(live: &LiveIdentity, server: &str, node: &str) -> anyhow::Result<String> {
    let name = format!("keel-{node}");
    let roots: Vec<String> = live
        .roots()
        .iter()
        .map(|root| pem("CERTIFICATE", root))
        .collect();
    let file = Kubeconfig {
        api_version: "v1",
        kind: "Config",
        clusters: vec![Named {
            name: name.clone(),
            inner: Inner::Cluster(Cluster {
                server: format!("https://{server}"),
                certificate_authority_data: BASE64.encode(roots.concat().as_bytes()),
            }),
        }],
        users: vec![Named {
            name: name.clone(),
            inner: Inner::User(User {
                client_certificate_data: BASE64.encode(live.chain().pem().as_bytes()),
                client_key_data: BASE64.encode(live.key().pem().as_bytes()),
            }),
        }],
        contexts: vec![Named {
            name: name.clone(),
            inner: Inner::Context(Context {
                cluster: name.clone(),
                user: name.clone(),
            }),
        }],
        current_context: name,
    };
    // One line per value, as kubectl writes them: people cut them out with grep.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&file, options).context("cannot write the kubeconfig")
}

/// Text form of DER, lines of 64 characters (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so every index is a boundary.
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kubeconfig {
    api_version: &'static str,
    kind: &'static str,
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
    #[serde(rename = "current-context")]
    current_context: String,
}

#[derive(Serialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    inner: Inner,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Inner {
    Cluster(Cluster),
    User(User),
    Context(Context),
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

#[derive(Serialize)]
struct Context {
    cluster: String,
    user: String,
}

#[cfg(test)]
mod tests {
    use keel_certs::{Hosts, INTERMEDIATE_LIFE, KeyPair, LEAF_LIFE, NodeAuthority, RootAuthority};

    use super::*;

    #[test]
    fn a_kubeconfig_has_everything_embedded() {
        let root = RootAuthority::create(None).unwrap();
        let key = KeyPair::generate().unwrap();
        let node = "edge-a".parse().unwrap();
        let hosts = Hosts::loopback();
        let intermediate = root
            .sign_intermediate(&key.csr().unwrap(), &node, &hosts, INTERMEDIATE_LIFE)
            .unwrap();
        let authority =
            NodeAuthority::create(key, intermediate, vec![root.certificate().clone()]).unwrap();
        let admin = KeyPair::generate().unwrap();
        let chain = authority
            .sign_admin(&admin.csr().unwrap(), &"me".parse().unwrap(), LEAF_LIFE)
            .unwrap();
        let live = LiveIdentity::new(admin, chain, authority.roots()).unwrap();
        let text = render(&live, "127.0.0.1:7443", "edge-a").unwrap();
        assert!(
            text.lines()
                .any(|line| line.trim().starts_with("client-key-data: LS0t")),
            "one line per value"
        );
        let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read["current-context"], "keel-edge-a");
        assert_eq!(
            read["clusters"][0]["cluster"]["server"],
            "https://127.0.0.1:7443"
        );
        let decode = |value: &serde_json::Value| {
            String::from_utf8(BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap()).unwrap()
        };
        assert!(decode(&read["users"][0]["user"]["client-key-data"]).contains("PRIVATE KEY"));
        assert_eq!(
            decode(&read["users"][0]["user"]["client-certificate-data"])
                .matches("BEGIN CERTIFICATE")
                .count(),
            2
        );
        assert!(
            decode(&read["clusters"][0]["cluster"]["certificate-authority-data"])
                .starts_with("-----BEGIN CERTIFICATE-----\nMI")
        );
    }
}
