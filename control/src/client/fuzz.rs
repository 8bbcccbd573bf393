//! What a server may answer. However it arrives, it means the same; nothing is taken twice or backwards; nothing is held beyond a bound.

use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::lines::Lines;
use super::watcher::{Step, Watcher};
use super::{Backoff, ClientError, WatchEvent, WatchFrom, Watched};
use crate::api::{FrpServer, Revision, Router};
use crate::fuzz::{Json, Random, drive, hurt};
use crate::http::{Body, BoxError};

const BODIES: u64 = 30_000;
/// The longest line that is taken.
const MAX_LINE: usize = 4096;
/// Where the watches here begin.
const SINCE: u64 = 5;

/// The bytes of an answer, and where they are cut.
#[derive(Debug)]
struct Input {
    bytes: Vec<u8>,
    piece: usize,
}

fn make(random: &mut Random) -> Input {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(6) {
        let kind = random.text(&["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "NEW"]);
        let revision = if random.once_in(8) {
            0
        } else {
            SINCE + random.next() % 9
        };
        let object = match random.below(4) {
            0 => {
                json!({"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old",
                "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}})
            }
            1 => {
                json!({"apiVersion": "tunnel.kubeinfra.io/v1alpha1", "kind": "FRPServer", "spec": {"bindPort": 7000},
                "metadata": {"name": "x", "resourceVersion": revision.to_string()}})
            }
            _ => {
                json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "x", "resourceVersion": revision.to_string()},
                "spec": {"addresses": ["203.0.113.10:7000"], "advertisedServices": [{"name": "a", "port": 1}]},
                "status": {"cluster": "c", "source": {"revision": 1}, "activeServices": [{"name": "a", "clients": [{"id": "b"}]}]}})
            }
        };
        bytes.append(&mut Json::like(
            random,
            &json!({"type": kind, "object": object}),
        ));
        bytes.push(b'\n');
    }
    if random.once_in(8) {
        hurt(random, &mut bytes);
    }
    let piece = 1 + random.below(bytes.len() + 1);
    Input { bytes, piece }
}

fn body(bytes: &[u8], piece: usize) -> Body {
    let frames: Vec<_> = bytes
        .chunks(piece)
        .map(|piece| Ok::<_, BoxError>(Frame::data(bytes::Bytes::copy_from_slice(piece))))
        .collect();
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// What the events of a body are, up to the first failure.
async fn events<T: Watched>(input: &Input, piece: usize) -> Vec<String> {
    let mut lines = Lines::new(body(&input.bytes, piece), MAX_LINE);
    let from = WatchFrom::Revision(Revision(SINCE));
    let mut watcher = Watcher::new(from, Backoff::local());
    let mut seen = Vec::new();
    let mut last = Revision(SINCE);
    loop {
        // The last line may be told as cut, or as too long before its end is there.
        let Ok(Some(line)) = lines.next().await else {
            return seen;
        };
        assert!(
            line.len() <= MAX_LINE.saturating_add(piece),
            "a line of {} bytes",
            line.len()
        );
        let event = watcher.line::<T>(&line);
        let Step::Watch(now) = watcher.next() else {
            panic!("a line makes nobody list");
        };
        assert!(now >= last, "back from {last} to {now}");
        match event {
            Ok(Some(WatchEvent::Applied(_) | WatchEvent::Deleted(_))) => {
                assert!(now > last, "{last} comes twice");
                seen.push(format!("changed {now}"));
            }
            Ok(Some(WatchEvent::Synced(at))) => {
                assert_eq!(at, now);
                seen.push(format!("synced {now}"));
            }
            Ok(Some(other)) => panic!("{:?}", std::mem::discriminant(&other)),
            Ok(None) => {}
            Err(error) => {
                assert!(error.to_string().len() <= 2 * line.len() + 200, "{error}");
                seen.push(format!("{:?}", error.class()));
                return seen;
            }
        }
        last = now;
    }
}

async fn means_the_same<T: Watched>(input: &Input) {
    let whole = events::<T>(input, usize::MAX).await;
    let pieces = events::<T>(input, input.piece).await;
    // A line that is too long is noticed sooner in pieces.
    if input
        .bytes
        .split(|byte| *byte == b'\n')
        .all(|line| line.len() <= MAX_LINE)
    {
        assert_eq!(whole, pieces);
    } else {
        assert!(
            whole.starts_with(&pieces),
            "{pieces:?} is not the start of {whole:?}"
        );
    }
}

#[test]
fn watches() {
    drive(
        "watches",
        BODIES,
        async || (),
        make,
        async |(), input| {
            means_the_same::<Router>(input).await;
            means_the_same::<FrpServer>(input).await;
            means_the_same::<Value>(input).await;
        },
    );
}

#[test]
fn refusals() {
    drive(
        "refusals",
        BODIES,
        async || (),
        make,
        async |(), input| {
            for code in [200, 400, 404, 409, 410, 429, 500, 504] {
                let code = http::StatusCode::from_u16(code).unwrap();
                let error = ClientError::answer(code, &input.bytes);
                assert!(
                    error.to_string().len() <= 2 * input.bytes.len() + 200,
                    "{error}"
                );
                let _ = error.class();
            }
        },
    );
}
