use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::options::Probe;

const PATIENCE: Duration = Duration::from_secs(20);

fn check(probe: Probe) -> Check {
    Check {
        interval: Duration::from_millis(10),
        timeout: Duration::from_millis(500),
        failures: 3,
        recoveries: 2,
        ..Check::new(probe)
    }
}

fn publication(port: u16, backend: SocketAddr, check: Option<Check>) -> Publication {
    let mut publication = Publication {
        service: "web.default".parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
        backend: backend.into(),
        options: Default::default(),
    };
    publication.options.check = check;
    publication
}

/// The healths that outcomes lead to, one by one.
fn healths(outcomes: &str) -> String {
    let mut counter = Counter::new(&check(Probe::Tcp));
    let health = |outcome| match counter.note(outcome == '+') {
        Health::Unknown => '?',
        Health::Healthy => '+',
        Health::Unhealthy => '-',
    };
    outcomes.chars().map(health).collect()
}

#[test]
fn only_failures_and_recoveries_in_a_row_count_and_exactly_so_many() {
    for (outcomes, expected) in [
        // Unhealthy by the third failure in a row, healthy again by the second success in a row.
        ("+---", "+++-"),
        ("+--+--+", "+++++++"),
        ("+----++", "+++---+"),
        ("+---+-+-++", "+++------+"),
        // What was never seen is healthy by one success, unhealthy by as many failures as ever.
        ("---", "??-"),
        ("--+", "??+"),
        ("---+-++", "??----+"),
    ] {
        assert_eq!(healths(outcomes), expected, "{outcomes}");
    }
}

/// A server whose answers are decided by the test: `None` closes without a word.
async fn server(
    answer: watch::Receiver<Option<&'static str>>,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, watch::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (asked, requests) = watch::channel(String::new());
    tasks.spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let Ok(got) = socket.read(&mut request).await else {
                continue;
            };
            asked.send_replace(String::from_utf8_lossy(&request[..got]).into_owned());
            let answer = *answer.borrow();
            if let Some(answer) = answer {
                // A check that has gone is no fault of the server.
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        }
    });
    (addr, requests)
}

async fn becomes(healths: &mut watch::Receiver<Healths>, of: &Publication, health: Health) {
    let is = healths.wait_for(|healths| healths.offer(of).health == health);
    tokio::time::timeout(PATIENCE, is)
        .await
        .expect("in time")
        .unwrap();
}

#[tokio::test]
async fn an_http_check_goes_by_the_status_and_follows_it() {
    let mut tasks = JoinSet::new();
    let (say, said) = watch::channel(Some("HTTP/1.1 204 No Content\r\n\r\n"));
    let (addr, requests) = server(said, &mut tasks).await;
    let one = publication(
        80,
        addr,
        Some(check(Probe::Http("/healthz?a=b".to_owned()))),
    );
    let metrics: Arc<FabricMetrics> = Arc::default();
    let checks = Checks::new(Arc::clone(&metrics));
    let mut healths = checks.healths();
    let (list, publications) = watch::channel(Arc::new(vec![one.clone()]));
    tasks.spawn(checks.run(publications));
    becomes(&mut healths, &one, Health::Healthy).await;
    let request = requests.borrow().clone();
    assert!(
        request.starts_with("GET /healthz?a=b HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nHost: {addr}\r\n")),
        "{request}"
    );
    for wrong in ["HTTP/1.1 503 Busy\r\n\r\n", "SSH-2.0-x\r\n", ""] {
        say.send_replace(Some(wrong));
        becomes(&mut healths, &one, Health::Unhealthy).await;
        let labels = CheckedLabels {
            service: "web.default:80".to_owned(),
        };
        assert_eq!(metrics.check_healthy.get_or_create(&labels).get(), 0);
        // The answer may come behind another one.
        say.send_replace(Some(
            "HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 302 Found\r\n\r\n",
        ));
        becomes(&mut healths, &one, Health::Healthy).await;
        assert_eq!(metrics.check_healthy.get_or_create(&labels).get(), 1);
    }
    // Not checked any more: nothing is known.
    list.send_replace(Arc::new(vec![publication(80, addr, None)]));
    becomes(&mut healths, &one, Health::Unknown).await;
    assert!(healths.borrow().0.is_empty());
}

#[tokio::test]
async fn a_silent_backend_holds_no_other_check_up_and_an_endless_answer_ends() {
    let mut tasks = JoinSet::new();
    let (_endless, said) = watch::channel(Some(
        Box::leak("x".repeat(100_000).into_boxed_str()) as &'static str
    ));
    let (endless, _) = server(said, &mut tasks).await;
    // It accepts by its backlog and never says a word.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let works = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut slow = check(Probe::Http("/".to_owned()));
    slow.timeout = Duration::from_secs(2);
    let all = vec![
        publication(1, deaf.local_addr().unwrap(), Some(slow)),
        publication(2, works.local_addr().unwrap(), Some(check(Probe::Tcp))),
        publication(3, endless, Some(check(Probe::Http("/".to_owned())))),
    ];
    let metrics = Arc::default();
    let checks = Checks::new(metrics);
    let mut healths = checks.healths();
    let (_list, publications) = watch::channel(Arc::new(all.clone()));
    let start = Instant::now();
    tasks.spawn(checks.run(publications));
    becomes(&mut healths, &all[1], Health::Healthy).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    becomes(&mut healths, &all[2], Health::Unhealthy).await;
    becomes(&mut healths, &all[0], Health::Unhealthy).await;
    drop(works);
    becomes(&mut healths, &all[1], Health::Unhealthy).await;
}
