//! Says which of the mapped services nobody publishes, so that a wrong name or port is seen before a connection has waited in vain.

use std::sync::Arc;
use std::time::Duration;

use keel_fabric::wire::Protocol;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::discovery::Known;
use crate::spec::{MappedService, Port};

/// How long providers that start together with this sidecar are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says it once, soon after what there is has become known. Ends then, or with `stop`.
pub(crate) async fn say(
    mapped: Vec<MappedService>,
    mut known: watch::Receiver<Known>,
    directory: watch::Receiver<Arc<Directory>>,
    stop: CancellationToken,
) {
    let look = async {
        let is_known = known.wait_for(|known| known.synced).await.is_ok();
        sleep(PATIENCE).await;
        is_known
    };
    if stop.run_until_cancelled(look).await == Some(true) {
        for line in unprovided(&mapped, &directory.borrow()) {
            tracing::warn!(
                "{line}; connections to it wait until somebody does, or their time is over"
            );
        }
    }
}

/// A line for each mapping that nobody provides. Pure.
fn unprovided(mapped: &[MappedService], directory: &Directory) -> Vec<String> {
    let mut lines = Vec::new();
    for one in mapped {
        let ports = directory.ports(&one.target, one.protocol);
        match one.port {
            _ if ports.is_empty() => {
                let other = match one.protocol {
                    Protocol::Tcp => Protocol::Udp,
                    Protocol::Udp => Protocol::Tcp,
                };
                let offered = directory.ports(&one.target, other).into_iter();
                let offered = offered.map(|number| Port {
                    number,
                    protocol: other,
                });
                let offered: Vec<String> = offered.map(|port| port.to_string()).collect();
                lines.push(match offered.is_empty() {
                    true => format!("nobody publishes {} now", one.target),
                    false => format!(
                        "nobody publishes {} over {} now, but on {}",
                        one.target,
                        one.protocol,
                        offered.join(", ")
                    ),
                });
            }
            Some(port) if !ports.contains(&port) => {
                let others: Vec<String> = ports.iter().map(u16::to_string).collect();
                lines.push(format!(
                    "nobody publishes {} on port {port} now, but on {}",
                    one.target,
                    others.join(", ")
                ));
            }
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{router, serving};
    use crate::spec::parse_mapped;

    #[test]
    fn a_wrong_name_and_a_wrong_port_are_told_apart() {
        let provider = ["/node/b/ns/default/pod/r"];
        let status = serving("default", &["203.0.113.10:7000"], "redis", 6379, &provider);
        let directory = Directory::build(&"a".parse().unwrap(), [&router("b", status)]);
        let one = |item| parse_mapped(item, &"default".parse().unwrap()).unwrap();
        let items = [
            "redis",
            "redis:6379",
            "redis:6380",
            "redis:6379/udp",
            "nosuch:5000",
        ];
        let mapped: Vec<MappedService> = items.into_iter().flat_map(one).collect();
        assert_eq!(
            unprovided(&mapped, &directory),
            [
                "nobody publishes redis.default on port 6380 now, but on 6379",
                "nobody publishes redis.default over UDP now, but on 6379",
                "nobody publishes nosuch.default now",
            ]
        );
    }
}
