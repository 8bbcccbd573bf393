//! Live counters: they move while a connection is in use, wherever one looks, and the README says what they are.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use keel::run::RunningNode;
use keel::settings::{Machine, NodeFlags, SidecarFlags};
use keel_control::api::RouterStatus;
use keel_control::enroll::local;
use keel_control::enroll::wire::FlowInfo;
use keel_tests::backends::{Backend, Manner, pattern};
use keel_tests::client::Exchange;
use keel_tests::wait::{self, SOON};
use keel_tests::{need, nodes, readme};
use tokio_util::sync::CancellationToken;

/// What is sent at once; then there is a pause, as of a connection that is slow.
const BLOCK: usize = 50_000;

fn scrape(address: SocketAddr) -> String {
    let get = Exchange {
        send: b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        finish: false,
        bound: SOON,
    };
    String::from_utf8_lossy(&get.here(address).bytes).into_owned()
}

/// The sum of the samples of `name` whose labels hold all of `labels`.
fn sum(text: &str, name: &str, labels: &[&str]) -> u64 {
    let samples = text.lines().filter(|line| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    });
    samples
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Bytes up and down, and flows that run, as a scrape has them.
fn counted(address: SocketAddr, role: &str) -> (u64, u64, u64) {
    let text = scrape(address);
    let role = format!("role=\"{role}\"");
    let service = "service=\"echo.default:4000\"";
    let bytes = |direction| {
        let direction = format!("direction=\"{direction}\"");
        sum(
            &text,
            "keel_fabric_service_bytes_total",
            &[&role, service, &direction],
        )
    };
    let active = sum(&text, "keel_fabric_service_flows", &[&role, service]);
    (bytes("up"), bytes("down"), active)
}

async fn status(node: &RunningNode) -> anyhow::Result<RouterStatus> {
    let router = node.client()?.get_router(node.node()).await?;
    Ok(router.status.unwrap_or_default())
}

/// Bytes up and down, and connections, of the only service's consumers in a status.
fn reported(status: &RouterStatus) -> (u64, u64, u64) {
    let clients = status
        .active_services
        .iter()
        .flat_map(|service| &service.clients);
    let consumers = clients.filter(|client| client.role.as_deref() == Some("consumer"));
    consumers.fold((0, 0, 0), |(up, down, active), client| {
        (
            up + client.bytes_in.unwrap_or_default(),
            down + client.bytes_out.unwrap_or_default(),
            active + client.current_connections.unwrap_or_default(),
        )
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_counter_moves_while_a_connection_is_in_use() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let echo = Backend::here(Manner::Echo)?;
    let flags = NodeFlags {
        status_interval: Some("200ms".parse()?),
        ..NodeFlags::default()
    };
    let node = nodes::node_with(folder.path(), "a", None, flags).await?;
    let stop = CancellationToken::new();
    let published = SidecarFlags {
        published_services: vec![format!("echo:4000={}", echo.address())],
        ..SidecarFlags::default()
    };
    let provider = nodes::sidecar(&node, "provider", published, stop.clone()).await?;
    let mapped = SidecarFlags {
        mapped_services: vec!["echo:4000".to_owned()],
        ip_range: Some("127.0.89.0/24".to_owned()),
        ..SidecarFlags::default()
    };
    let consumer = nodes::sidecar(&node, "consumer", mapped, stop.clone()).await?;
    let server = SocketAddr::from((Ipv4Addr::new(127, 0, 89, 1), 4000));
    let places = [
        (consumer.addresses().metrics, "consumer"),
        (provider.addresses().metrics, "provider"),
        (node.metrics_addr(), "router"),
    ];
    let socket = node.data_dir().join("admin.sock");
    let handle = tokio::runtime::Handle::current();
    // A connection of a minute in the long form.
    let (rounds, pause) = if need::long() {
        (12, Duration::from_secs(5))
    } else {
        (4, Duration::from_millis(200))
    };

    let node = tokio::task::spawn_blocking(move || -> anyhow::Result<RunningNode> {
        let mut stream = wait::until_some("the service is there", SOON, || {
            first_word(server).map_err(|error| error.to_string())
        })?;
        // The first word and its echo.
        let mut total = 1;
        let mut last = (0, 0);
        let block = pattern(BLOCK);
        let mut back = vec![0; BLOCK];
        for round in 0..rounds {
            stream.write_all(&block)?;
            stream.read_exact(&mut back)?;
            anyhow::ensure!(back == block, "block {round}");
            total += BLOCK as u64;
            for (address, role) in places {
                wait::until_some(&format!("{role} counts round {round}"), SOON, || {
                    let seen = counted(address, role);
                    let exact = role != "router" && seen == (total, total, 1);
                    let passed =
                        role == "router" && seen.0 >= total && seen.1 >= total && seen.2 == 1;
                    if exact || passed {
                        Ok(())
                    } else {
                        Err(format!("{seen:?}, not {total}"))
                    }
                })?;
            }
            let flows: Vec<FlowInfo> = handle.block_on(local::flows(&socket))?.unwrap_or_default();
            anyhow::ensure!(
                flows.len() == 1 && flows[0].active == 1 && flows[0].bytes_down >= total,
                "keel status, round {round}: {flows:?}"
            );
            let now = wait::until_some(
                &format!("the Router's status counts round {round}"),
                SOON,
                || {
                    let status = handle
                        .block_on(status(&node))
                        .map_err(|error| error.to_string())?;
                    let (up, down, active) = reported(&status);
                    let all = status.service_status.clone().unwrap_or_default();
                    let totals = all.total_bytes_in >= total && all.total_connections == 1;
                    if up >= total && down >= total && active == 1 && totals {
                        Ok((up, down))
                    } else {
                        Err(format!("{up} {down} {active} {all:?}, not {total}"))
                    }
                },
            )?;
            anyhow::ensure!(now > last, "it moved: {last:?}, {now:?}");
            last = now;
            wait::pause(pause);
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        anyhow::ensure!(stream.read(&mut back)? == 0, "a clean end");
        for (address, role) in &places[..2] {
            wait::until(&format!("{role} counts the end"), SOON, || {
                counted(*address, role) == (total, total, 0)
            })?;
        }
        // One that the client resets: each end, the router between them and all that show it say so.
        let mut stream = first_word(server)?;
        stream.write_all(b"y")?;
        stream.peek(&mut [0])?;
        // Closing with an unread byte is an RST.
        drop(stream);
        for (address, role) in places {
            let role = format!("role=\"{role}\"");
            let labels = [&role, "service=\"echo.default:4000\"", "code=\"RESET\""];
            wait::until(&format!("{role} counts the reset"), SOON, || {
                sum(
                    &scrape(address),
                    "keel_fabric_service_resets_total",
                    &labels,
                ) == 1
            })?;
        }
        let flows: Vec<FlowInfo> = handle.block_on(local::flows(&socket))?.unwrap_or_default();
        anyhow::ensure!(
            flows[0].resets == BTreeMap::from([("RESET".to_owned(), 1)]),
            "keel status: {flows:?}"
        );
        wait::until_some("the Router's status tells of the reset", SOON, || {
            let status = handle.block_on(status(&node));
            let status = status.map_err(|error| error.to_string())?;
            let services = &status.active_services;
            let mut told = services.iter().flat_map(|service| &service.incidents);
            match told
                .next()
                .is_some_and(|told| told.resets.get("RESET") == Some(&1))
            {
                true => Ok(()),
                false => Err(format!("{services:?}")),
            }
        })?;
        // Every sample of a process in use has the labels that the README names.
        let scrapes = places.map(|(address, _)| scrape(address));
        let wrong = readme::differences(&scrapes)?;
        anyhow::ensure!(
            wrong.is_empty(),
            "the table of metrics in README.md:\n{}",
            wrong.into_iter().collect::<Vec<_>>().join("\n")
        );
        Ok(node)
    })
    .await??;

    consumer.stop().await?;
    provider.stop().await?;
    node.stop().await
}

/// A connection that was answered: the listener takes some before the provider is known.
fn first_word(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

#[test]
fn the_readme_names_the_ports_that_are_the_defaults() -> anyhow::Result<()> {
    let machine = Machine {
        data_dir: "/data".into(),
        host: "host".to_owned(),
        user: "user".to_owned(),
    };
    let node = NodeFlags::default().resolve("/data".into(), "host".to_owned())?;
    let sidecar = SidecarFlags::default().resolve(&machine)?.config;
    let router = keel_control::routes::DEFAULT_PORT;
    let real = [
        ("APIServer", node.apiserver_listen.to_string()),
        ("Router", format!(":{router}")),
        ("node metrics", node.metrics_listen.addr.to_string()),
        ("sidecar metrics", sidecar.metrics.address.to_string()),
        ("sidecar DNS", sidecar.dns.address.to_string()),
    ];
    let rows = readme::table("Ports");
    for (part, address) in real {
        let row = rows
            .iter()
            .find(|row| row[1].starts_with(part))
            .ok_or_else(|| anyhow::anyhow!("no row for {part}"))?;
        let host = match row[3].as_str() {
            every if every.starts_with("every address") => "",
            host => host,
        };
        assert_eq!(format!("{host}:{}", row[0]), address, "{part}");
    }
    Ok(())
}
