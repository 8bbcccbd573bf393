//! What this sidecar offers, and where: at its own node's router and at some others that the world can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keel_certs::{ClusterName, NodeName};
use keel_fabric::link::RouterPeer;
use keel_fabric::provider::{Publication, PublishOutcome, PublishedAt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::options::AllOptions;
use crate::spec::PublishedService;
use crate::survey::Survey;

/// The publications of `published` on a node of `cluster` (`None`: not known yet), and what is wrong with the others. Pure.
pub(crate) fn publications(
    published: &[PublishedService],
    options: &AllOptions,
    cluster: Option<&ClusterName>,
) -> (Vec<Publication>, Vec<String>) {
    let mut all = Vec::new();
    let mut problems = Vec::new();
    for one in published {
        if let (Some(asked), Some(own)) = (&one.target.cluster, cluster)
            && asked != own
        {
            problems.push(format!(
                "{} is not published: this node belongs to the cluster {own}",
                one.target
            ));
        } else {
            all.push(Publication {
                service: one.target.service.clone(),
                port: one.port,
                protocol: one.protocol,
                backend: one.backend.clone(),
                options: options.of(&one.target.service, one.port).publication(),
            });
        }
    }
    (all, problems)
}

/// Where the decisions of [`follow`] go.
pub(crate) struct Decided {
    /// What is published.
    pub(crate) publications: watch::Sender<Arc<Vec<Publication>>>,
    /// Where.
    pub(crate) routers: watch::Sender<Arc<Vec<RouterPeer>>>,
}

/// Follows the directory, and how publishing goes: which publications, at which routers. Ends with `stop`.
pub(crate) async fn follow(
    (published, options): (Vec<PublishedService>, Arc<AllOptions>),
    mut directory: watch::Receiver<Arc<Directory>>,
    mut state: watch::Receiver<Arc<Vec<PublishedAt>>>,
    mut survey: Survey<'_>,
    to: Decided,
    stop: CancellationToken,
) {
    let mut said = Vec::new();
    loop {
        let now = directory.borrow_and_update().clone();
        let (all, problems) = publications(&published, &options, now.own_cluster());
        if problems != said {
            for problem in &problems {
                tracing::warn!("{problem}");
            }
            said = problems;
        }
        replace(&to.publications, all);
        survey.among(now.public_others().cloned().collect());
        let own = now.own_router().cloned();
        loop {
            let routers = own.iter().cloned().chain(survey.best());
            replace(&to.routers, routers.collect());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = directory.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                changed = state.changed() => match changed {
                    Ok(()) => {
                        let unreachable = |one: &&PublishedAt| matches!(one.outcome, PublishOutcome::Unreachable(_));
                        for one in state.borrow_and_update().iter().filter(unreachable) {
                            survey.lost(&one.router);
                        }
                    }
                    Err(_) => return,
                },
                () = survey.step() => {}
            }
        }
    }
}

/// Says once which routers cannot be reached, and again if they were reached in between. Ends with `stop`.
pub(crate) async fn say_unreachable(
    mut state: watch::Receiver<Arc<Vec<PublishedAt>>>,
    stop: CancellationToken,
) {
    let mut said: BTreeSet<NodeName> = BTreeSet::new();
    loop {
        let now = state.borrow_and_update().clone();
        let unreachable = unreachable(&now);
        said.retain(|router| unreachable.contains_key(router));
        for (router, why) in unreachable {
            if said.insert(router.clone()) {
                tracing::warn!(%router, "cannot publish there: {why}; it is tried again");
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

/// The routers of which no publication has an answer, and why. One that answers for the first of several is there, whatever is still
/// held of the others. Pure.
fn unreachable(state: &[PublishedAt]) -> BTreeMap<&NodeName, &str> {
    let mut unreachable = BTreeMap::new();
    for one in state {
        if let PublishOutcome::Unreachable(why) = &one.outcome {
            unreachable.insert(&one.router, why.as_str());
        }
    }
    for one in state {
        if !matches!(one.outcome, PublishOutcome::Unreachable(_)) {
            unreachable.remove(&one.router);
        }
    }
    unreachable
}

/// Sends `value` if it is another one, so that nobody acts on what did not change.
fn replace<T: PartialEq>(to: &watch::Sender<Arc<Vec<T>>>, value: Vec<T>) {
    to.send_if_modified(|old| {
        let changed = **old != value;
        if changed {
            *old = Arc::new(value);
        }
        changed
    });
}

#[cfg(test)]
mod tests {
    use keel_fabric::link::PublishError;

    use super::*;
    use crate::spec::parse_published;

    #[test]
    fn only_what_can_be_carried_here_is_published() {
        let list = "web=127.0.0.1:80,dns/udp=127.0.0.1:53,a.default.east=127.0.0.1:81,b.default.home=127.0.0.1:82";
        let published = parse_published(list, &"default".parse().unwrap()).unwrap();
        let home: ClusterName = "home".parse().unwrap();
        let (all, problems) = publications(&published, &AllOptions::default(), Some(&home));
        let names: Vec<_> = all
            .iter()
            .map(|p| format!("{}:{}", p.service, p.port))
            .collect();
        assert_eq!(names, ["web.default:80", "dns.default:53", "b.default:82"]);
        assert!(problems.len() == 1 && problems[0].contains("cluster home"));
        assert_eq!(
            publications(&published, &AllOptions::default(), None)
                .0
                .len(),
            4
        );
    }

    #[test]
    fn a_router_that_answers_for_one_service_is_reachable() {
        let published = parse_published(
            "web=127.0.0.1:80,redis=127.0.0.1:6379",
            &"default".parse().unwrap(),
        );
        let (all, _) = publications(&published.unwrap(), &AllOptions::default(), None);
        let away = || PublishOutcome::Unreachable("away".to_owned());
        let at = |router: &str, outcomes: [PublishOutcome; 2]| {
            let router: NodeName = router.parse().unwrap();
            let each = all.clone().into_iter().zip(outcomes);
            let each = each.map(move |(publication, outcome)| PublishedAt {
                publication,
                router: router.clone(),
                outcome,
            });
            each.collect::<Vec<_>>()
        };
        let state = [
            at("a", [PublishOutcome::Published, away()]),
            at("b", [away(), away()]),
            at(
                "c",
                [away(), PublishOutcome::Refused(PublishError::NoAnswer)],
            ),
        ]
        .concat();
        let b = "b".parse().unwrap();
        assert_eq!(unreachable(&state), BTreeMap::from([(&b, "away")]));
    }
}
