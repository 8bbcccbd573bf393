//! bore, OpenSSH and stunnel.

use std::net::SocketAddr;

use anyhow::Context;
use keel_tests::process::Program;
use keel_tests::{need, wait};

use super::{Part, Running, peer};
use crate::place::Place;

pub(super) fn bore(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let binary = peer("bore").context("no bore")?;
    let [entry] = place.free_ports()?;
    let far = Program::new(&binary).args(["server", "--min-port", "1024"]);
    let relay = Part::until(place.apps(far), "listening")?;
    let near = Program::new(&binary)
        .args(["local", &server.port().to_string()])
        .args(["--local-host", &server.ip().to_string()])
        .args(["--to", &place.apps_ip().to_string()])
        .args(["--port", &entry.to_string()]);
    let parts = vec![relay, Part::start(place.servers(near))?];
    let entry = SocketAddr::from(([127, 0, 0, 1], entry));
    Ok(Running::new(entry, parts, tempfile::tempdir()?))
}

pub(super) fn ssh(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let folder = tempfile::tempdir()?;
    let [port, entry] = place.free_ports()?;
    let path = |name: &str| folder.path().join(name);
    for key in ["host", "user"] {
        Program::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(path(key))
            .ok(wait::SOON)?;
    }
    // Where the daemon separates its privileges; packages make it at their service's start.
    std::fs::create_dir_all("/run/sshd").context("/run/sshd")?;
    let config = path("config");
    std::fs::write(
        &config,
        format!(
            "Port {port}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\nAllowTcpForwarding yes\nClientAliveInterval 5\n",
            place.apps_ip(),
            path("host").display(),
            path("user.pub").display()
        ),
    )?;
    // It insists on its full path.
    let daemon = need::find("sshd").context("no sshd")?;
    let far = Program::new(daemon).args(["-D", "-e", "-f"]).arg(&config);
    let relay = Part::until(place.apps(far), "listening")?;
    let near = Program::new("ssh")
        .args([
            "-N",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args([
            "-o",
            "ServerAliveInterval=5",
            "-o",
            "ExitOnForwardFailure=yes",
            "-i",
        ])
        .arg(path("user"))
        .args(["-p", &port.to_string(), "-R"])
        .arg(format!("127.0.0.1:{entry}:{server}"))
        .arg(format!("root@{}", place.apps_ip()));
    let parts = vec![relay, Part::start(place.servers(near))?];
    let entry = SocketAddr::from(([127, 0, 0, 1], entry));
    Ok(Running::new(entry, parts, folder))
}

/// stunnel carries nothing inwards: its server stands beside the servers and has to be reachable there.
pub(super) fn stunnel(place: &Place, server: SocketAddr) -> anyhow::Result<Running> {
    let folder = tempfile::tempdir()?;
    let [port, entry] = place.free_ports()?;
    let path = |name: &str| folder.path().join(name);
    let (key, cert) = (path("key.pem"), path("cert.pem"));
    super::self_signed(&key, &cert)?;
    let config = |name: &str, text: String| -> anyhow::Result<Program> {
        // No added delay, as the others have it.
        let common =
            "foreground = yes\npid =\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n";
        std::fs::write(path(name), format!("{common}{text}"))?;
        Ok(Program::new("stunnel").arg(path(name)))
    };
    let meeting = SocketAddr::new(place.servers_ip(), port);
    let far = config(
        "server.conf",
        format!(
            "[bench]\naccept = {meeting}\nconnect = {server}\nkey = {}\ncert = {}\n",
            key.display(),
            cert.display()
        ),
    )?;
    let near = config(
        "client.conf",
        format!(
            "[bench]\nclient = yes\naccept = 127.0.0.1:{entry}\nconnect = {meeting}\nverifyChain = yes\nCAfile = {}\n\
             checkHost = localhost\n",
            cert.display()
        ),
    )?;
    let said = "Configuration successful";
    let parts = vec![
        Part::until(place.servers(far), said)?,
        Part::until(place.apps(near), said)?,
    ];
    let entry = SocketAddr::from(([127, 0, 0, 1], entry));
    Ok(Running::new(entry, parts, folder))
}
