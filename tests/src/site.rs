//! A small site as the README describes it: nodes made with `keel up`, joined by tokens, with sidecars beside them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::lab::{Host, Lab, Nat, NatKind};
use crate::process::{Process, Program};
use crate::wait;

/// Where a sidecar answers DNS unless it is told otherwise.
pub const DNS: &str = "127.0.0.2";
/// What a command like `keel token create` may take on a busy machine.
pub const COMMAND: Duration = Duration::from_secs(30);

/// A running node: one `keel up`.
#[derive(Debug)]
pub struct Node {
    /// Its process.
    pub process: Process,
    /// The machine it runs on.
    pub host: Host,
    name: String,
    folder: tempfile::TempDir,
}

impl Node {
    /// The first node, as `a` of the README: public, a new trust domain, its APIServer reachable by others.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn public(host: &Host, name: &str) -> anyhow::Result<Self> {
        let flags = Self::public_flags(host);
        Self::up(host, name, &flags.each_ref().map(String::as_str))
    }

    /// Starts a [`public`](Self::public) node again after its process has ended.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn public_again(&mut self) -> anyhow::Result<()> {
        let flags = Self::public_flags(&self.host);
        self.again(&flags.each_ref().map(String::as_str))
    }

    fn public_flags(host: &Host) -> [String; 4] {
        let advertise = format!("{}:7000", host.address);
        [
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--advertise",
            &advertise,
        ]
        .map(str::to_owned)
    }

    /// A node that joins `first`, as `b` of the README: behind NAT, with nothing said about itself.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn joining(host: &Host, name: &str, first: &Self) -> anyhow::Result<Self> {
        let token = first.token(&["--node", name])?;
        Self::up(
            host,
            name,
            &["--join", &format!("@{}", token.path().display())],
        )
    }

    /// `keel up` with these flags and a data directory of its own; waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn up(host: &Host, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        Self::up_behind([], host, name, flags)
    }

    /// The same with another command in front (see [`Program::behind`]).
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn up_behind<const N: usize>(
        front: [&str; N],
        host: &Host,
        name: &str,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let command = Self::words(name, folder.path(), flags)?;
        let process = command.behind(front).on(host).start()?;
        let mut node = Self {
            process,
            host: host.clone(),
            name: name.to_owned(),
            folder,
        };
        node.ready()?;
        Ok(node)
    }

    /// Only the APIServer of a node, the owner of its data directory; the other parts are the caller's to start.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn apiserver(host: &Host, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Program::ours("keel-apiserver")?
            .args(["--node-name", name, "--data-dir"])
            .arg(folder.path())
            .args(flags)
            .on(host)
            .start()?;
        let mut node = Self {
            process,
            host: host.clone(),
            name: name.to_owned(),
            folder,
        };
        node.ready()?;
        Ok(node)
    }

    /// The command line of a node, not started.
    ///
    /// # Errors
    /// If the binary has not been built.
    pub fn command(
        host: &Host,
        name: &str,
        data: &Path,
        flags: &[&str],
    ) -> anyhow::Result<Program> {
        Ok(Self::words(name, data, flags)?.on(host))
    }

    fn words(name: &str, data: &Path, flags: &[&str]) -> anyhow::Result<Program> {
        Ok(Program::ours("keel")?
            .args(["up", "--node-name", name, "--data-dir"])
            .arg(data)
            .args(flags))
    }

    /// Starts the node again on its data directory after its process has ended. No token: it goes on as what it is.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn again(&mut self, flags: &[&str]) -> anyhow::Result<()> {
        self.process = Self::command(&self.host, &self.name, self.folder.path(), flags)?.start()?;
        self.ready()
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        // Not just "ready": an address may be "already in use".
        self.process.says("ready node=", wait::SOON)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// A `keel` command on this node, with its data directory.
    ///
    /// # Errors
    /// If the binary has not been built.
    pub fn keel(&self, words: &[&str]) -> anyhow::Result<Program> {
        Ok(Program::ours("keel")?
            .args(words)
            .arg("--data-dir")
            .arg(self.data())
            .on(&self.host))
    }

    /// Makes a join token (`keel token create` with these flags) and keeps it in a file, as the docs advise.
    ///
    /// # Errors
    /// What the command complains about.
    pub fn token(&self, flags: &[&str]) -> anyhow::Result<tempfile::NamedTempFile> {
        let token = self
            .keel(&[&["token", "create"], flags].concat())?
            .ok(COMMAND)?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), token)?;
        Ok(file)
    }

    /// The kubeconfig of this node's administrator, in a file.
    ///
    /// # Errors
    /// What the command complains about.
    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        let path = self.data().join("kubeconfig");
        let text = self.keel(&["kubeconfig"])?.ok(COMMAND)?;
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A GET on the node's metrics port, by curl on the node's host.
    ///
    /// # Errors
    /// If it does not answer 2xx.
    pub fn metrics(&self, path: &str) -> anyhow::Result<String> {
        Program::new("curl")
            .args(["-sSf", &format!("http://127.0.0.1:9090{path}")])
            .on(&self.host)
            .ok(COMMAND)
    }
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// Its process.
    pub process: Process,
    /// The machine it runs on.
    pub host: Host,
    state: tempfile::TempDir,
    program: Program,
    /// Its command line names the token's file, also when it starts again.
    _token: Option<tempfile::NamedTempFile>,
}

impl Sidecar {
    /// A sidecar beside a node: it finds its identity by the node's workload socket.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn beside(node: &Node, pod: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let program = Program::ours("keel-sidecar")?.env("KEEL_DATA_DIR", node.data());
        Self::start(program, &node.host, pod, flags)
    }

    /// A sidecar on another network than any node: it joins by a token.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn joining(host: &Host, pod: &str, first: &Node, flags: &[&str]) -> anyhow::Result<Self> {
        Self::joining_behind([], host, pod, first, flags)
    }

    /// The same with another command in front (see [`Program::behind`]).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn joining_behind<const N: usize>(
        front: [&str; N],
        host: &Host,
        pod: &str,
        first: &Node,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let token = first.token(&["--sidecar", &format!("default/{pod}")])?;
        let join = format!("@{}", token.path().display());
        let mut sidecar = Self::start_behind(
            front,
            Program::ours("keel-sidecar")?,
            host,
            pod,
            &[&["--join", &join], flags].concat(),
        )?;
        let state = sidecar.state.path().to_owned();
        wait::until("the sidecar keeps an identity", wait::SOON, || {
            crate::credentials::search(&state, "tls.crt").is_some() || !sidecar.process.is_running()
        })?;
        sidecar._token = Some(token);
        Ok(sidecar)
    }

    /// A sidecar that was put together by hand.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: Program, host: &Host, pod: &str, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_behind([], program, host, pod, flags)
    }

    fn start_behind<const N: usize>(
        front: [&str; N],
        program: Program,
        host: &Host,
        pod: &str,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let state = tempfile::tempdir()?;
        let program = program
            .env("POD_NAME", pod)
            .env("POD_NAMESPACE", "default")
            .args(["--state-dir"])
            .arg(state.path())
            .args(flags)
            .behind(front)
            .on(host);
        let process = program.start()?;
        Ok(Self {
            process,
            host: host.clone(),
            state,
            program,
            _token: None,
        })
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Starts it again with the same flags and state directory, after its process has ended.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn again(&mut self) -> anyhow::Result<()> {
        self.process = self.program.start()?;
        Ok(())
    }

    /// Waits until DNS here knows `name`, and says which address it has.
    ///
    /// # Errors
    /// If it does not within a bound.
    pub fn resolves(&self, name: &str) -> anyhow::Result<Ipv4Addr> {
        wait::until_some(
            &format!("{name} resolves on {}", self.host.netns()),
            wait::SOON,
            || {
                let answer = dig(&self.host, &[name, "A", "+short"])
                    .map_err(|error| format!("{error:#}; {}", self.process.log()))?;
                answer
                    .trim()
                    .parse()
                    .map_err(|_| format!("dig says {answer:?}; {}", self.process.log()))
            },
        )
    }

    /// Waits until a TCP connection to `name:port` from this host is accepted; the listener's address.
    ///
    /// # Errors
    /// If it is not within a bound.
    pub fn listens(&self, name: &str, port: u16) -> anyhow::Result<std::net::SocketAddr> {
        let address = std::net::SocketAddr::from((self.resolves(name)?, port));
        wait::until(&format!("{name} listens on {address}"), wait::SOON, || {
            let connect =
                || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
            self.host.run(connect).unwrap_or(false)
        })
        .with_context(|| self.process.log())?;
        Ok(address)
    }
}

/// Asks the sidecar's DNS on this host.
///
/// # Errors
/// If nobody answers.
pub fn dig(host: &Host, words: &[&str]) -> anyhow::Result<String> {
    Program::new("dig")
        .arg(format!("@{DNS}"))
        .args(["+time=2", "+tries=1"])
        .args(words)
        .on(host)
        .ok(COMMAND)
}

/// The picture on the README's first page, with every hard part in it: a public node, a node behind a NAT whose sidecar
/// publishes, and a sidecar behind another NAT that maps. No packet can reach the last two unasked.
#[derive(Debug)]
pub struct Town {
    // Dropped from top to bottom: processes before the namespaces they run in.
    /// Beside the applications that use the services.
    pub consumer: Sidecar,
    /// Beside the servers, on the edge node.
    pub provider: Sidecar,
    /// The node behind the NAT.
    pub edge: Node,
    /// The node with the public router.
    pub public: Node,
    /// The NAT of the edge node.
    pub edge_nat: Nat,
    /// The NAT of the consumer.
    pub consumer_nat: Nat,
    /// The network.
    pub lab: Lab,
}

impl Town {
    /// Builds it. The servers are the caller's to start, on [`Town::servers`].
    ///
    /// # Errors
    /// If a part does not come up.
    pub fn new(edge_nat: NatKind, published: &str, mapped: &str) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let public = Node::public(&lab.host("a")?, "a")?;
        let (edge_host, edge_nat) = lab.behind_nat("b", edge_nat)?;
        let (consumer_host, consumer_nat) = lab.behind_nat("c", NatKind::Home)?;
        let consumer_host = consumer_host.resolves_by(Some(DNS))?;
        let edge = Node::joining(&edge_host, "b", &public)?;
        let provider = Sidecar::beside(&edge, "provider", &["--published-services", published])?;
        let consumer = Sidecar::joining(
            &consumer_host,
            "consumer",
            &public,
            &["--mapped-services", mapped],
        )?;
        Ok(Self {
            consumer,
            provider,
            edge,
            public,
            edge_nat,
            consumer_nat,
            lab,
        })
    }

    /// Where the servers run: on the edge node, behind its NAT.
    #[must_use]
    pub fn servers(&self) -> &Host {
        &self.edge.host
    }

    /// Where the applications run: beside the consumer's sidecar, with its DNS.
    #[must_use]
    pub fn apps(&self) -> &Host {
        &self.consumer.host
    }
}
