//! Who may do what at the APIServer, asked with curl over TCP, and what it says to requests that are not right.

use keel_tests::credentials::Credentials;
use keel_tests::lab::{Host, Lab};
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::site::{COMMAND, Node, Sidecar};

const ROUTERS: &str = "/apis/edge.example.com/v1/routers";

/// The status of a request to the APIServer of a host.
fn status(curl: Program, host: &Host, words: &[&str], path: &str) -> anyhow::Result<u16> {
    let url = format!("https://127.0.0.1:7443{path}");
    let said = curl.args(words).arg(url).on(host).output(COMMAND)?;
    let text = said.stdout();
    Ok(text
        .trim()
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or(0))
}

#[test]
fn who_may_do_what() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let node = Node::public(&host, "a")?;
    let stranger = Node::public(&lab.host("x")?, "a")?;
    let admin = Credentials::admin(&node)?;
    let pod = Sidecar::joining(
        &host,
        "pod",
        &node,
        &["--published-services", "web=127.0.0.1:8080"],
    )?;
    let pod = Credentials::kept_in(pod.state())?;
    let router = r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":{"name":"n1"},"spec":{}}"#;
    let post = ["-H", "Content-Type: application/json", "-d", router];
    let patch = [
        "-X",
        "PATCH",
        "-H",
        "Content-Type: application/merge-patch+json",
        "-d",
        r#"{"spec":{}}"#,
    ];

    for version in ["--http1.1", "--http2"] {
        assert_eq!(
            status(admin.curl(), &host, &[version], ROUTERS)?,
            200,
            "an admin reads, {version}"
        );
        assert_eq!(
            status(pod.curl(), &host, &[version], ROUTERS)?,
            200,
            "a pod reads, {version}"
        );
    }
    assert_eq!(
        status(pod.curl(), &host, &post, ROUTERS)?,
        403,
        "a pod creates no Router"
    );
    assert_eq!(
        status(pod.curl(), &host, &patch, &format!("{ROUTERS}/a"))?,
        403,
        "a pod changes no Router"
    );
    assert_eq!(
        status(
            pod.curl(),
            &host,
            &["-X", "DELETE"],
            &format!("{ROUTERS}/a")
        )?,
        403,
        "a pod deletes no Router"
    );
    assert_eq!(
        status(pod.curl(), &host, &patch, &format!("{ROUTERS}/a/status"))?,
        403,
        "a pod writes no status"
    );
    assert_eq!(
        status(admin.curl(), &host, &post, ROUTERS)?,
        201,
        "an admin creates one"
    );
    assert_eq!(status(admin.curl(), &host, &post, ROUTERS)?, 409, "once");

    let nobody = || {
        Program::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "--cacert"])
            .arg(&admin.ca)
    };
    assert_eq!(
        status(nobody(), &host, &[], ROUTERS)?,
        401,
        "without a certificate nothing is shown"
    );
    assert_eq!(status(nobody(), &host, &post, ROUTERS)?, 401, "nor written");
    let foreign = Credentials::admin(&stranger)?;
    let foreign = || {
        Program::new("curl")
            .args(["-sSk", "-w", "\n%{http_code}", "--cert"])
            .arg(&foreign.cert)
            .arg("--key")
            .arg(&foreign.key)
    };
    assert_eq!(
        status(foreign(), &host, &[], ROUTERS)?,
        0,
        "another trust domain's admin is refused in the handshake"
    );
    let old = admin.curl().args(["--tls-max", "1.2"]);
    assert_eq!(status(old, &host, &[], ROUTERS)?, 0, "TLS 1.3 only");

    let json = ["-H", "Content-Type: application/json", "-d"];
    for (body, expected, what) in [
        ("{\"kind\": ", 400, "malformed JSON"),
        ("[]", 400, "another JSON"),
        (
            r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":{"name":"UPPER_case"},"spec":{}}"#,
            422,
            "a name that is none",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}"#,
            400,
            "another kind",
        ),
    ] {
        assert_eq!(
            status(
                admin.curl(),
                &host,
                &[json.as_slice(), &[body]].concat(),
                ROUTERS
            )?,
            expected,
            "{what}"
        );
    }
    let folder = tempfile::tempdir()?;
    let large = folder.path().join("large");
    std::fs::write(&large, format!("{{\"x\":\"{}\"}}", "y".repeat(8 << 20)))?;
    let body = format!("@{}", large.display());
    assert_eq!(
        status(
            admin.curl(),
            &host,
            &[json.as_slice(), &[&body]].concat(),
            ROUTERS
        )?,
        413,
        "an oversized body"
    );
    assert_eq!(
        status(admin.curl(), &host, &[], "/apis/edge.example.com/v1/pods")?,
        404
    );
    assert_eq!(
        status(
            admin.curl(),
            &host,
            &[],
            &format!("{ROUTERS}?resourceVersion=1&resourceVersionMatch=Exact")
        )?,
        410,
        "long compacted"
    );
    assert_eq!(
        status(
            admin.curl(),
            &host,
            &[],
            &format!("{ROUTERS}?watch=1&resourceVersion=99999999999999&timeoutSeconds=1")
        )?,
        504,
        "the future"
    );
    assert_eq!(
        status(admin.curl(), &host, &[], ROUTERS)?,
        200,
        "after all that it still answers"
    );
    Ok(())
}
