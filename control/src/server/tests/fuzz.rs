//! Requests of any kind. Whatever comes, the answer has Kubernetes' shape, is of bounded size, is no failure of the server's, and what
//! was taken can be read and written again.

mod requests;

use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;

use super::*;
use crate::api::Status;
use crate::fuzz::{Random, drive, hurt};
use crate::server::path;
use crate::server::query::Options;
use requests::{GOLDEN, Input, NAMES, query, read, write};

const BODIES: u64 = 16_000;
const LISTS: u64 = 16_000;
const QUERIES: u64 = 400_000;

/// Bytes that an error may have, and the warnings of an answer: clients have limits.
const MAX_ERROR: usize = 128 << 10;
const MAX_WARNINGS: usize = 8 << 10;

/// A server with something in it.
async fn start() -> Server {
    let server = Server::new().await;
    for (collection, golden) in GOLDEN.iter() {
        let made = server
            .call(
                ADMIN,
                "POST",
                collection,
                "application/json",
                golden.to_string(),
            )
            .await;
        assert_eq!(made.code, 201, "{collection}: {:?}", made.body);
    }
    server
}

/// Sends it; `None` if no transport would hand it on.
async fn ask(server: &Server, input: &Input) -> Option<Answer> {
    let mut request = Request::builder().method(input.method).uri(&input.uri);
    for (name, value) in [("content-type", &input.media), ("accept", &input.accept)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let request = request.body(full(input.body.clone())).ok()?;
    let watches = request
        .uri()
        .query()
        .is_some_and(|query| query.contains("watch"));
    let (parts, body) = server.send(input.who, request).await.into_parts();
    // A watch may have no end.
    let body = if watches && parts.status.is_success() {
        Bytes::from_static(b"{}")
    } else {
        body.collect().await.unwrap().to_bytes()
    };
    Some(Answer {
        code: parts.status,
        headers: parts.headers,
        body,
    })
}

/// What holds of every answer.
fn check(input: &Input, answer: &Answer) {
    let code = answer.code.as_u16();
    assert!(code < 500 || code == 504, "{code}: {:?}", answer.body);
    let warnings: usize = answer.warnings().iter().map(|warning| warning.len()).sum();
    assert!(warnings <= MAX_WARNINGS, "{warnings} bytes of warnings");
    if code < 400 || input.method == "HEAD" {
        return;
    }
    assert!(
        answer.body.len() <= MAX_ERROR,
        "an error of {} bytes",
        answer.body.len()
    );
    let status: Status = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("{error}: {:?}", answer.body));
    assert_eq!(status.code, code);
    let shape = answer.json();
    assert_eq!(
        (&shape["kind"], &shape["apiVersion"], &shape["status"]),
        (&json!("Status"), &json!("v1"), &json!("Failure"))
    );
    assert!(!status.message.is_empty(), "{:?}", answer.body);
}

#[test]
fn bodies_and_patches() {
    let (taken, all) = (AtomicU64::new(0), AtomicU64::new(0));
    drive(
        "bodies and patches",
        BODIES,
        start,
        write,
        async |server, input| {
            let before = *server.store.revision().borrow();
            let Some(answer) = ask(server, input).await else {
                return;
            };
            check(input, &answer);
            all.fetch_add(1, Ordering::Relaxed);
            taken.fetch_add(answer.code.is_success().into(), Ordering::Relaxed);
            let dry = input.uri.contains("dryRun=All");
            if answer.code.is_client_error() {
                assert_eq!(
                    before,
                    *server.store.revision().borrow(),
                    "a refused request wrote"
                );
            }
            if !answer.code.is_success() || dry || !input.uri.contains("/routers") {
                return;
            }
            // What was taken is there, and can be written again as it stands.
            let object = answer.json();
            let name = answer.text("/metadata/name");
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                return;
            }
            assert_eq!(server.router(&name).await, object);
            let path = format!("{name}?fieldValidation=Strict");
            server.put(ADMIN, &path, &object).await.expect(200);
            // Objects of any name would fill the store.
            if !NAMES.contains(&name.as_str()) {
                let gone = server.delete(ADMIN, &name, "").await;
                assert_eq!(gone.code, 200, "{:?}", gone.body);
            }
        },
    );
    // What is nearly right must be right often enough to get behind the first check, and wrong often enough.
    let (taken, all) = (taken.into_inner(), all.into_inner());
    println!("{taken} of {all} were taken");
    assert!(
        taken > all / 20 && taken < all / 2,
        "{taken} of {all} taken"
    );
}

#[test]
fn paths_and_queries_of_requests() {
    drive(
        "paths and queries",
        LISTS,
        start,
        read,
        async |server, input| {
            if let Some(answer) = ask(server, input).await {
                check(input, &answer);
                if answer.code == 200
                    && input.method == "GET"
                    && answer
                        .headers
                        .get("content-type")
                        .is_some_and(|media| media == "application/json")
                {
                    answer.json();
                }
            }
        },
    );
}

#[test]
fn queries_alone() {
    let make = |random: &mut Random| {
        let mut query = query(random).into_bytes();
        if random.once_in(4) {
            hurt(random, &mut query);
        }
        String::from_utf8_lossy(&query).into_owned()
    };
    let objects: Vec<&Value> = GOLDEN.iter().map(|(_, golden)| golden).collect();
    let target = async |(): &(), query: &String| {
        path::route(query);
        let Ok(options) = Options::parse(&Method::GET, query) else {
            return;
        };
        for object in &objects {
            options.selector.matches(object);
        }
        if let Some(from) = options.from {
            let again = Options::parse(&Method::GET, &format!("continue={from}")).unwrap();
            assert_eq!(again.from, Some(from));
        }
    };
    drive("queries", QUERIES, async || (), make, target);
}
