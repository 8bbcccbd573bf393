//! Real servers in temporary folders: Redis and MariaDB, started on a host of the lab and ended by process id.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::lab::Host;
use crate::process::{Process, Program};
use crate::wait;

/// `mariadb-install-db` writes a hundred files with fsync; a busy disk takes its time.
const INSTALL: Duration = Duration::from_secs(120);
/// The user that the tests log in as, from anywhere.
const USER: &str = "keel";
/// Its password. Not a secret: the server lives as long as one test.
const PASSWORD: &str = "keel";

/// A Redis on the loopback address of a host.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    host: Host,
    /// Where it listens.
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Redis {
    /// Starts one on port 6379 of the host, without persistence.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn on(host: &Host) -> anyhow::Result<Self> {
        let (port, folder) = (6379, tempfile::tempdir()?);
        let process = Program::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(folder.path())
            .on(host)
            .start()?;
        let mut redis = Self {
            process,
            host: host.clone(),
            port,
            _folder: folder,
        };
        redis
            .process
            .says("Ready to accept connections", wait::SOON)?;
        Ok(redis)
    }

    /// `redis-cli` on the server's own host: what the server says of itself.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        Program::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(words)
            .on(&self.host)
            .ok(wait::SOON)
    }
}

/// A MariaDB on the loopback address of a host.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    host: Host,
    folder: tempfile::TempDir,
}

impl MariaDb {
    /// Installs a database in a temporary folder and starts it on port 3306 of the host. It carries 400 connections.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn on(host: &Host) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = format!("--datadir={}", folder.path().join("data").display());
        Program::new("mariadb-install-db")
            .args([
                "--no-defaults",
                "--user=root",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
                &data,
            ])
            .ok(INSTALL)?;
        let init = folder.path().join("init.sql");
        let grant = format!(
            "CREATE DATABASE shop;\nCREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO '{USER}'@'%';\n"
        );
        std::fs::write(&init, grant)?;
        let process = Program::new("mariadbd")
            .args([
                "--no-defaults",
                "--user=root",
                "--port=3306",
                "--bind-address=127.0.0.1",
                "--max-connections=400",
                &data,
            ])
            .args([
                "--skip-name-resolve",
                "--innodb-flush-log-at-trx-commit=2",
                "--max-allowed-packet=64M",
            ])
            .arg(format!("--socket={}", folder.path().join("sock").display()))
            .arg(format!("--init-file={}", init.display()))
            .on(host)
            .start()?;
        let mut server = Self {
            process,
            host: host.clone(),
            folder,
        };
        server.process.says("ready for connections", INSTALL)?;
        // "Ready" is printed before the init file has run.
        wait::until("the database shop exists", wait::SOON, || {
            server.ask("USE shop").is_ok()
        })?;
        Ok(server)
    }

    /// Runs SQL on the server itself, not through the fabric.
    ///
    /// # Errors
    /// What the server complains about.
    pub fn ask(&self, sql: &str) -> anyhow::Result<String> {
        let socket = format!("--socket={}", self.folder.path().join("sock").display());
        Program::new("mariadb")
            .args(["--no-defaults", "-uroot", "-N", "-B", &socket, "-e", sql])
            .on(&self.host)
            .ok(INSTALL)
    }

    /// A MariaDB client program that logs in at `server:port` over TCP.
    #[must_use]
    pub fn client(program: &str, server: &str) -> Program {
        Program::new(program)
            .args([
                "--no-defaults",
                "--protocol=TCP",
                "-h",
                server,
                "-P",
                "3306",
                "-u",
                USER,
            ])
            .arg(format!("-p{PASSWORD}"))
    }

    /// Writes an SQL dump of at least `bytes` bytes that fills `shop.orders`; returns its path. Every row differs.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn write_dump(&self, bytes: usize) -> anyhow::Result<PathBuf> {
        use std::fmt::Write as _;
        use std::io::Write as _;
        let path = self.folder.path().join("load.sql");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
        writeln!(
            file,
            "CREATE TABLE orders (id INT PRIMARY KEY, customer VARCHAR(64), note VARCHAR(600), body VARBINARY(64));"
        )?;
        let (mut written, mut id) = (0, 0_u64);
        while written < bytes {
            let mut statement = String::from("INSERT INTO orders VALUES ");
            for row in 0..500 {
                let word = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let note = format!("{word:016x}").repeat(30);
                let separator = if row == 0 { "" } else { "," };
                write!(
                    statement,
                    "{separator}({id},'customer {}','{note}',x'{word:016x}')",
                    id % 997
                )?;
                id += 1;
            }
            statement.push_str(";\n");
            file.write_all(statement.as_bytes())?;
            written += statement.len();
        }
        file.flush().context("write the dump")?;
        Ok(path)
    }
}
