//! Events that are over: as Kubernetes, the APIServer forgets what nobody has told again for a while.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Api;
use super::change::{Preconditions, delete};
use super::path::Named;
use crate::api::kind::{Kind, find};
use crate::api::{Status, Time};
use crate::store::{Change, Object, Store};

/// Events that one look at the store takes, and that are deleted together.
const PAGE: usize = 500;
/// Between two looks, unless events live so short that it matters.
const EVERY: Duration = Duration::from_secs(60);

impl Api {
    /// Deletes events that were not told for `ttl`, until it is stopped; watchers see that as they see any deletion. Several
    /// APIServers on one store may do it beside one another.
    pub async fn expire_events(self, ttl: Duration, stop: CancellationToken) {
        let Some(kind) = find("", "v1", "events") else {
            return;
        };
        let mut looks = tokio::time::interval(EVERY.min(ttl / 10).max(Duration::from_millis(1)));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let work = async {
            loop {
                looks.tick().await;
                let now = SystemTime::now();
                match expire(&self.inner.store, kind, ttl, now).await {
                    Ok(0) => {}
                    Ok(events) => debug!(events, "old events deleted"),
                    Err(error) => warn!(error = error.message, "old events cannot be deleted"),
                }
            }
        };
        stop.run_until_cancelled(Box::pin(work)).await;
    }
}

/// Deletes the objects that are older than `ttl`; how many.
pub(super) async fn expire(
    store: &Store,
    kind: &'static Kind,
    ttl: Duration,
    now: SystemTime,
) -> Result<usize, Status> {
    let mut expired = 0;
    let mut after = String::new();
    loop {
        let page = store
            .page(kind.about.resource, None, &after, PAGE)
            .await
            .map_err(|error| super::watch::events_status(&error))?;
        let old = page
            .objects
            .iter()
            .filter(|(_, object)| is_old(object, ttl, now));
        let deletions = old.map(|(key, _)| {
            let (namespace, name) = match key.split_once('/') {
                Some((namespace, name)) => (Some(namespace.to_owned()), name),
                None => (None, key.as_str()),
            };
            let named = Named {
                kind,
                namespace,
                name: name.to_owned(),
            };
            store.write(named.key(), move |current, revision| {
                // It may have been told again meanwhile.
                let old = current.filter(|object| is_old(&object.data, ttl, now));
                let deleted = old.and_then(|object: &Object| {
                    let any = Preconditions::default();
                    delete(Some(object), revision, &named, &any, &Time::now()).ok()
                });
                deleted.map_or((Change::Keep, 0), |(change, _)| (change, 1))
            })
        });
        for deleted in join_all(deletions).await {
            expired += deleted.map_err(|error| super::store_status(&error))?;
        }
        match page.objects.into_iter().next_back() {
            Some((last, _)) if page.more => after = last,
            _ => return Ok(expired),
        }
    }
}

/// Whether nobody has told the event for `ttl`: that counts from its making, or from a later time that somebody claims and that has
/// come. What cannot be read is old.
fn is_old(event: &[u8], ttl: Duration, now: SystemTime) -> bool {
    let event: Value = serde_json::from_slice(event).unwrap_or_default();
    let claimed = [
        "/metadata/creationTimestamp",
        "/firstTimestamp",
        "/eventTime",
        "/lastTimestamp",
        "/series/lastObservedTime",
    ];
    let told = claimed
        .iter()
        .filter_map(|path| serde_json::from_value::<Time>(event.pointer(path)?.clone()).ok())
        .filter_map(|time| time.to_system_time())
        .filter(|time| *time <= now)
        .max();
    told.is_none_or(|told| now.duration_since(told).is_ok_and(|age| age >= ttl))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_word_that_can_be() {
        let at = |text: &str| {
            let time: Time = serde_json::from_value(text.into()).unwrap();
            time.to_system_time().unwrap()
        };
        let hour = Duration::from_secs(3600);
        let now = at("2026-01-01T12:00:00Z");
        let old = |event: Value| is_old(event.to_string().as_bytes(), hour, now);
        let made = |text: &str| json!({"metadata": {"creationTimestamp": text}});
        assert!(old(made("2026-01-01T11:00:00Z")));
        assert!(!old(made("2026-01-01T11:00:01Z")));
        let with = |key: &str, value: Value| {
            let mut event = made("2026-01-01T10:00:00Z");
            event[key] = value;
            event
        };
        assert!(!old(with("lastTimestamp", "2026-01-01T11:59:00Z".into())));
        assert!(!old(with(
            "eventTime",
            "2026-01-01T11:59:00.123456Z".into()
        )));
        let observed = json!({"count": 3, "lastObservedTime": "2026-01-01T11:59:00.123456Z"});
        assert!(!old(with("series", observed)));
        // Nobody keeps an event for ever by claiming that it has not happened yet.
        assert!(old(with("lastTimestamp", "2126-01-01T11:59:00Z".into())));
        assert!(old(with("lastTimestamp", Value::Null)));
        assert!(is_old(b"{", hour, now));
    }
}
