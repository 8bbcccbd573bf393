//! A PostgreSQL server of the tests' own: in a temporary folder, on a socket there, as a user without privileges.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown, geteuid};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

use super::need::skipped;

pub(crate) struct Server {
    folder: TempDir,
    programs: PathBuf,
    /// Who runs it: PostgreSQL refuses the super user.
    user: Option<(Uid, Gid)>,
    databases: AtomicU32,
    /// Names the socket, too.
    port: AtomicU16,
}

/// The server that tests share: started by the first that wants it, stopped by the last. `None` if there is no PostgreSQL here,
/// which was said.
pub(crate) fn shared() -> Option<Arc<Server>> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut kept = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = kept.upgrade() {
        return Some(server);
    }
    let server = Arc::new(Server::start()?);
    *kept = Arc::downgrade(&server);
    Some(server)
}

impl Server {
    /// A server of one's own; `None` if there is no PostgreSQL here, which was said.
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            skipped("postgresql");
            return None;
        };
        let folder = TempDir::new().unwrap();
        let user = geteuid().is_root().then(|| {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            chown(folder.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
            (nobody.uid, nobody.gid)
        });
        let server = Self {
            folder,
            programs,
            user,
            databases: AtomicU32::new(0),
            port: AtomicU16::new(5432),
        };
        let data = server.data();
        server.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "keel",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
        );
        server.configure(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 200\n",
            server.folder.path().display()
        ));
        server.up();
        Some(server)
    }

    /// Makes a file that the server may read and gives back its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = self.user {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    /// Starts again with a port on this machine that takes nothing but TLS; says which.
    pub(crate) fn listen_with_tls(&self, certificate: &str, key: &str) -> u16 {
        // Below those that the system hands out: no other test gets it before the server has it.
        let port = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
        self.down("fast");
        self.configure(&format!(
            "listen_addresses = 'localhost'\nport = {port}\nssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\n"
        ));
        let hba = Path::new(&self.data()).join("pg_hba.conf");
        std::fs::write(
            hba,
            "local all all trust\nhostssl all all localhost trust\n",
        )
        .unwrap();
        self.up();
        self.port.store(port, Ordering::Relaxed);
        port
    }

    pub(crate) fn url(&self, database: &str) -> String {
        let socket = self.folder.path().display().to_string();
        format!(
            "postgres://keel@localhost:{}/{database}?host={}&sslmode=disable",
            self.port.load(Ordering::Relaxed),
            socket.replace('/', "%2F")
        )
    }

    /// Makes a database and gives back its name.
    pub(crate) async fn create(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        // Copied from a template that nobody is connected to.
        let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        name
    }

    /// Kills the server as a crash does.
    pub(crate) fn crash(&self) {
        let file = Path::new(&self.data()).join("postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        let pid = text.lines().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    /// Starts the server, also after a crash: its children may take a moment to notice that and to let go of their memory.
    pub(crate) fn up(&self) {
        let (data, log) = (self.data(), self.folder.path().join("log"));
        let log = log.to_str().unwrap();
        let start = ["-D", &data, "-l", log, "-w", "-t", "60", "start"];
        for _ in 0..100 {
            if self.command("pg_ctl", &start).status.success() {
                return;
            }
        }
        panic!("{}", std::fs::read_to_string(log).unwrap());
    }

    /// Adds to the server's settings; later ones win.
    fn configure(&self, settings: &str) {
        let path = Path::new(&self.data()).join("postgresql.conf");
        let mut config = std::fs::read_to_string(&path).unwrap();
        config.push_str(settings);
        std::fs::write(&path, config).unwrap();
    }

    fn down(&self, mode: &str) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", mode, "-w", "stop"]);
    }

    fn data(&self) -> String {
        self.folder.path().join("data").to_str().unwrap().to_owned()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program, arguments);
        assert!(output.status.success(), "{program}: {output:?}");
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command.output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stop = ["-D", &self.data(), "-m", "immediate", "-w", "stop"];
        let stopped = self.command("pg_ctl", &stop);
        if !stopped.status.success() && !std::thread::panicking() {
            eprintln!("PostgreSQL did not stop: {stopped:?}");
        }
    }
}

/// Where PostgreSQL's programs are: on the path, or where Debian keeps each version's.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    std::env::split_paths(&path)
        .chain(versions.into_iter().rev())
        .find(|folder| folder.join("initdb").is_file() && folder.join("pg_ctl").is_file())
}
