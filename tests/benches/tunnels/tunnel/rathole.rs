//! rathole: its server stands where the applications are, its client beside the servers and dials out, as ours does.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use keel_tests::process::Program;
use keel_tests::wait;

use super::{Part, Running, peer};
use crate::place::Place;

pub(super) fn plain(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let plain = "type = \"tcp\"";
    start(tempfile::tempdir()?, place, server, plain, plain)
}

pub(super) fn tls(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, cert, store) = (path("key.pem"), path("cert.pem"), path("identity.pfx"));
    super::self_signed(Path::new(&key), Path::new(&cert))?;
    super::openssl(&format!(
        "pkcs12 -export -inkey {key} -in {cert} -passout pass:bench -out {store}"
    ))?;
    let far = format!(
        "type = \"tls\"\n[server.transport.tls]\npkcs12 = \"{store}\"\npkcs12_password = \"bench\""
    );
    let near = format!(
        "type = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{cert}\"\nhostname = \"localhost\""
    );
    start(folder, place, server, &far, &near)
}

pub(super) fn noise(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let binary = peer("rathole").context("no rathole")?;
    let keys = Program::new(binary).arg("--genkey").ok(wait::SOON)?;
    // "Private Key:", the key, "Public Key:", the key.
    let lines: Vec<_> = keys
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let [_, private, _, public] = lines[..] else {
        anyhow::bail!("rathole --genkey said {keys:?}");
    };
    let far =
        format!("type = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"");
    let near =
        format!("type = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"");
    start(tempfile::tempdir()?, place, server, &far, &near)
}

fn start(
    folder: tempfile::TempDir,
    place: &Place,
    server: SocketAddr,
    far_transport: &str,
    near_transport: &str,
) -> anyhow::Result<Running> {
    let binary = peer("rathole").context("no rathole")?;
    let [control, entry] = place.free_ports()?;
    let meeting = SocketAddr::new(place.apps_ip(), control);
    let far = folder.path().join("server.toml");
    std::fs::write(
        &far,
        format!(
            "[server]\nbind_addr = \"{meeting}\"\ndefault_token = \"bench\"\n[server.transport]\n{far_transport}\n\
             [server.services.bench]\nbind_addr = \"127.0.0.1:{entry}\"\n"
        ),
    )?;
    let near = folder.path().join("client.toml");
    std::fs::write(
        &near,
        format!(
            "[client]\nremote_addr = \"{meeting}\"\ndefault_token = \"bench\"\n[client.transport]\n{near_transport}\n\
             [client.services.bench]\nlocal_addr = \"{server}\"\n"
        ),
    )?;
    let run = |config: &Path| Program::new(&binary).env("RUST_LOG", "warn").arg(config);
    let parts = vec![
        Part::start(place.apps(run(&far)))?,
        Part::start(place.servers(run(&near)))?,
    ];
    let entry = SocketAddr::from(([127, 0, 0, 1], entry));
    Ok(Running::new(entry, parts, folder))
}
