//! Much data, and proof that it arrived: files of random bytes, their SHA-256, and a small HTTP server for both ways.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::Context;
use aws_lc_rs::digest::{self, SHA256};
use rand::{Rng, SeedableRng};

/// A SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest(Vec<u8>);

impl Digest {
    /// The digest of all that `source` still holds.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(mut source: impl Read) -> anyhow::Result<Self> {
        let mut context = digest::Context::new(&SHA256);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = source.read(&mut buffer)?;
            if read == 0 {
                return Ok(Self(context.finish().as_ref().to_vec()));
            }
            context.update(&buffer[..read]);
        }
    }

    /// The digest of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        Self::of(File::open(path).with_context(|| path.display().to_string())?)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes `length` random bytes to `path` and returns their digest. The same seed gives the same bytes.
///
/// # Errors
/// If the disk is full.
pub fn random_file(path: &Path, length: u64, seed: u64) -> anyhow::Result<Digest> {
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut file = File::create(path)?;
    let mut context = digest::Context::new(&SHA256);
    let mut block = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        random.fill_bytes(&mut block);
        let part = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        file.write_all(&block[..part])?;
        context.update(&block[..part]);
        left -= part as u64;
    }
    Ok(Digest(context.finish().as_ref().to_vec()))
}

/// One connection of [`super::Manner::Http`], kept alive over any number of requests.
pub(super) fn serve_http(stream: &TcpStream, file: &Path) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let field = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(field, _)| field.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        };
        if field("expect").is_some() {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if head.starts_with("PUT ") {
            let length = field("content-length")
                .context("a PUT without a length")?
                .parse()?;
            let digest = Digest::of((&mut reader).take(length))?.to_string();
            write!(
                writer,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{digest}",
                digest.len()
            )?;
        } else {
            let mut file = File::open(file)?;
            write!(
                writer,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                file.metadata()?.len()
            )?;
            std::io::copy(&mut file, &mut writer)?;
        }
    }
}
