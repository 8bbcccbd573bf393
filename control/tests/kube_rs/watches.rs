//! kube-rs' caches, over a server that is killed and one that has forgotten: they miss nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{Store, reflector};
use kube::runtime::watcher;
use kube::runtime::watcher::{Config, Event};
use kube::{Client, Resource, ResourceExt};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::diary::{self, Change, Entry, State};
use crate::server::{Server, Start};
use crate::{SOON, discovery};

const SELECTED: &str = "side=left";
/// How long a cache waits after an error; kube-rs leaves that to its user.
const PATIENCE: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_miss_nothing() {
    let seed = rand::rng().next_u64();
    eprintln!("seed {seed}");
    let mut server = Server::new().await;
    let client = server.admin().await;
    let resource = discovery::router(&client).await;
    let mut history = History::new(client.clone(), &resource, seed);
    history.go_on(30).await;

    let plain = Config::default();
    let watched: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut caches = Caches::default();
    let whole = |config: &Config| watcher(watched.clone(), config.clone());
    caches.add(
        "listing",
        false,
        &resource,
        whole(&plain.clone().page_size(3)),
    );
    caches.add(
        "streaming",
        false,
        &resource,
        whole(&plain.clone().streaming_lists()),
    );
    let selecting = plain.clone().labels(SELECTED);
    caches.add("selecting", true, &resource, whole(&selecting));
    let selecting = selecting.streaming_lists().timeout(1);
    caches.add(
        "selecting, in short watches",
        true,
        &resource,
        whole(&selecting),
    );
    caches.add(
        "without bookmarks",
        false,
        &resource,
        whole(&plain.clone().disable_bookmarks()),
    );
    let metadata: Api<PartialObjectMeta> = Api::all_with(client, &resource);
    let metadata = watcher(metadata, plain.any_semantic());
    caches.add("of metadata", false, &resource, metadata);

    history.go_on(60).await;
    // Killed while the caches are behind, they go on where they were.
    server.kill();
    server.start(Start::Again).await;
    history.talk_to(server.admin().await, &resource);
    history.go_on(60).await;
    caches.wait_for(&history).await;

    // What is written now they do not see, and cannot be told.
    server.kill();
    server.start(Start::Elsewhere).await;
    history.talk_to(server.admin().await, &resource);
    history.go_on(20).await;
    server.kill();
    server.start(Start::Forgetful).await;
    history.talk_to(server.admin().await, &resource);
    history.go_on(40).await;
    caches.wait_for(&history).await;

    let listed = history.api.list(&ListParams::default()).await.unwrap();
    let listed = listed.iter().map(name_and_revision).collect::<State>();
    assert_eq!(listed, diary::state(&history.changes));
    caches.check(&history.changes).await;
}

fn name_and_revision<K: Resource>(object: &K) -> (String, String) {
    (object.name_any(), object.resource_version().unwrap())
}

/// Everything that was written, in order.
struct History {
    api: Api<DynamicObject>,
    resource: ApiResource,
    random: StdRng,
    changes: Vec<Change>,
}

impl History {
    fn new(client: Client, resource: &ApiResource, seed: u64) -> Self {
        Self {
            api: Api::all_with(client, resource),
            resource: resource.clone(),
            random: StdRng::seed_from_u64(seed),
            changes: Vec::new(),
        }
    }

    fn talk_to(&mut self, client: Client, resource: &ApiResource) {
        self.api = Api::all_with(client, resource);
    }

    /// Makes so many changes more.
    async fn go_on(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("node-{}", self.random.random_range(0..10));
            let selected = self.random.random();
            let there = diary::state(&self.changes).contains_key(&name);
            let side = if selected { "left" } else { "right" };
            let write = self.changes.len().to_string();
            let metadata = json!({"labels": {"side": side, "write": write}});
            let written = if !there {
                let mut object = DynamicObject::new(&name, &self.resource);
                object.labels_mut().insert("side".into(), side.into());
                Some(self.api.create(&PostParams::default(), &object).await)
            } else if self.random.random_ratio(1, 5) {
                let gone = self.api.delete(&name, &DeleteParams::default()).await;
                assert!(gone.unwrap().is_right());
                None
            } else {
                let patch = Patch::Merge(json!({"metadata": metadata}));
                Some(self.api.patch(&name, &PatchParams::default(), &patch).await)
            };
            self.changes.push(Change {
                name,
                revision: written.map(|object| object.unwrap().resource_version().unwrap()),
                selected,
            });
        }
    }
}

/// What a cache's task brings home.
struct Diary {
    name: &'static str,
    selects: bool,
    entries: Vec<Entry>,
    errors: Vec<String>,
}

/// Caches that run, each in a task of its own.
#[derive(Default)]
struct Caches {
    tasks: JoinSet<Diary>,
    stop: CancellationToken,
    shown: BTreeMap<&'static str, Shown>,
}

/// How to look into a cache, and what it selects.
type Shown = (Box<dyn Fn() -> State>, bool);

impl Caches {
    fn add<K>(
        &mut self,
        name: &'static str,
        selects: bool,
        resource: &ApiResource,
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    ) where
        K: Resource<DynamicType = ApiResource> + Clone + Debug + Send + Sync + 'static,
    {
        let writer = Writer::new(resource.clone());
        let store: Store<K> = writer.as_reader();
        let state = move || {
            let objects = store.state();
            objects
                .iter()
                .map(|object| name_and_revision(&**object))
                .collect()
        };
        self.shown.insert(name, (Box::new(state), selects));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut events = std::pin::pin!(reflector(writer, events));
            let (mut entries, mut errors) = (Vec::new(), Vec::new());
            while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
                match event {
                    Ok(event) => entries.push(Entry::of(&event)),
                    Err(error) => {
                        errors.push(format!("{error:?}"));
                        sleep(PATIENCE).await;
                    }
                }
            }
            Diary {
                name,
                selects,
                entries,
                errors,
            }
        });
    }

    /// Waits until all caches hold what was written.
    async fn wait_for(&self, history: &History) {
        let deadline = Instant::now() + SOON;
        for (name, (shown, selects)) in &self.shown {
            let expected = diary::state(&diary::seen(&history.changes, *selects));
            while shown() != expected {
                assert!(
                    Instant::now() < deadline,
                    "{name}: {:?} is not {expected:?}",
                    shown()
                );
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Stops, and looks at everything that they were told.
    async fn check(self, changes: &[Change]) {
        self.stop.cancel();
        for diary in self.tasks.join_all().await {
            let errors = diary.errors.len();
            eprintln!(
                "{}: {} entries, {errors} errors",
                diary.name,
                diary.entries.len()
            );
            let begins = diary::check(&diary.entries, &diary::seen(changes, diary.selects));
            // At the start, and when told that it cannot go on; not when a server was only killed.
            assert_eq!(begins, 2, "{}: {:?}", diary.name, diary.errors);
            let forgotten = diary
                .errors
                .iter()
                .filter(|error| error.contains("code: 410"));
            assert_eq!(forgotten.count(), 1, "{}: {:?}", diary.name, diary.errors);
        }
    }
}
