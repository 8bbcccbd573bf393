//! Ours: real nodes and sidecars, as the README starts them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use keel_tests::process::Program;
use keel_tests::wait;

use super::{Part, Running};
use crate::place::Place;

/// Who dials the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// The router, which stands beside the servers.
    Router {
        /// Whether flows are kept over a loss of their leg.
        resume: bool,
    },
    /// A sidecar beside the servers, through a router beside the applications.
    Sidecar,
}

pub(super) fn start(place: &Place, server: SocketAddr, ends: Ends) -> anyhow::Result<Running> {
    let folder = tempfile::tempdir()?;
    let [api, router, entry] = place.free_ports()?;
    // The node stands where the others can reach it.
    let by_apps = ends == Ends::Sidecar;
    let (on_node, ip): (&dyn Fn(Program) -> Program, IpAddr) = if by_apps {
        (&|program| place.apps(program), place.apps_ip())
    } else {
        (&|program| place.servers(program), place.servers_ip())
    };
    let at = |port| SocketAddr::new(ip, port).to_string();
    let data = folder.path().join("node");
    let node = Program::ours("keel")?
        .args(["up", "--node-name", "bench", "--data-dir"])
        .arg(&data)
        .args(["--apiserver-listen", &at(api)])
        .args(["--router-listen", &at(router), "--advertise", &at(router)])
        .args(["--metrics-listen", "127.0.0.1:0"])
        .args(["--dashboard-listen", "127.0.0.1:0"]);
    let mut parts = vec![Part::until(on_node(node), "ready node=")?];
    let command = |words: &[&str]| -> anyhow::Result<Program> {
        let program = Program::ours("keel")?.args(words);
        Ok(on_node(program.arg("--data-dir").arg(&data)))
    };
    let join = |pod: &str| -> anyhow::Result<String> {
        let file = folder.path().join(format!("{pod}.token"));
        let scope = format!("default/{pod}");
        // On loopback the command would rather name no endpoint at all.
        let create = [
            "token",
            "create",
            "--sidecar",
            &scope,
            "--endpoint",
            &at(api),
        ];
        let token = command(&create)?.ok(wait::SOON)?;
        std::fs::write(&file, token)?;
        Ok(format!("--join=@{}", file.display()))
    };
    let service = format!("bench:{entry}");
    let mut flags = vec![format!("--mapped-services={service}"), join("consumer")?];
    match ends {
        Ends::Router { resume } => {
            let window = if resume { "60s" } else { "0s" };
            flags.push(format!("--service-option=bench=resume-window:{window}"));
            let spec = format!(
                r#"{{"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {{"name": "bench"}}, "spec":
                    {{"advertisedServices": [{{"name": "bench", "port": {entry}, "target": "{server}", "resumeWindow": "{window}"}}]}}}}"#
            );
            let apply = command(&["apply", "-f", "-"])?;
            apply.input(spec).ok(wait::SOON)?;
        }
        Ends::Sidecar => {
            let published = format!("--published-services={service}={server}");
            let provider = pod(folder.path(), "provider")?.args([published, join("provider")?]);
            parts.push(Part::until(place.servers(provider), "ready")?);
        }
    }
    let consumer = pod(folder.path(), "consumer")?
        .args(["--ip-range", "127.0.66.0/24"])
        .args(flags);
    parts.push(Part::until(place.apps(consumer), "ready")?);
    let entry = SocketAddr::from(([127, 0, 66, 1], entry));
    Ok(Running::new(entry, parts, folder))
}

fn pod(folder: &Path, name: &str) -> anyhow::Result<Program> {
    Ok(Program::ours("keel-sidecar")?
        .env("POD_NAME", name)
        .args(["--dns-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(folder.join(name)))
}
