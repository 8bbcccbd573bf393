//! Typed calls for Routers.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use keel_certs::NodeName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::watch::EVENTS_AT_ONCE;
use super::{Client, ClientError, Watched};
use crate::api::kind::Typed as _;
use crate::api::{
    API_VERSION, FrpServer, FrpServerStatus, GROUP, KIND, MAX_OBJECT, ObjectMeta, PLURAL, Revision,
    Router, RouterStatus, VERSION,
};
use crate::http::{Body, read};
use crate::pace::Pace;

/// What an answer for one object may have around it: an event's or a list's frame, in bytes.
const ENVELOPE: usize = 64 << 10;
/// Largest list that is taken, in bytes.
pub(super) const MAX_LIST: usize = 64 << 20;
/// How long the body of an answer may take.
pub(super) const BODY: Duration = Duration::from_secs(60);

/// Routers as of one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterList {
    /// The routers, those that cannot be read left out.
    pub routers: Vec<Router>,
    /// The revision that the list is of: a watch goes on from here.
    pub revision: Revision,
}

/// Which Routers a list or a watch is about, and how much of them is taken.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Path of the collection.
    pub(super) collection: String,
    /// Only the object of this name.
    pub(super) name: Option<String>,
    /// Largest list, in bytes.
    pub(super) max_list: usize,
    /// Largest event of a watch, in bytes.
    pub(super) max_event: usize,
    /// How fast events are read, if there is a bound.
    pub(super) pace: Option<Pace>,
}

impl Selection {
    /// All Routers.
    pub(super) fn all() -> Self {
        Self {
            collection: collection(),
            name: None,
            max_list: MAX_LIST,
            max_event: MAX_OBJECT + ENVELOPE,
            pace: None,
        }
    }

    /// One Router, and no more memory than one may need.
    pub(super) fn one(name: NodeName) -> Self {
        Self {
            collection: collection(),
            name: Some(name.to_string()),
            max_list: MAX_OBJECT + ENVELOPE,
            max_event: MAX_OBJECT + ENVELOPE,
            pace: Some(Pace::new(EVENTS_AT_ONCE)),
        }
    }

    /// One FRPServer.
    pub(super) fn frpserver(name: &str) -> Self {
        Self {
            collection: frpservers(),
            name: Some(name.to_owned()),
            max_list: MAX_OBJECT + ENVELOPE,
            max_event: MAX_OBJECT + ENVELOPE,
            pace: None,
        }
    }

    fn query(&self) -> String {
        // The names that are asked for consist of letters, digits, dots and hyphens: nothing to escape.
        self.name
            .as_ref()
            .map(|name| format!("&fieldSelector=metadata.name%3D{name}"))
            .unwrap_or_default()
    }
}

impl Client {
    /// One Router.
    ///
    /// # Errors
    /// [`ClientError`]; [`is_not_found`](ClientError::is_not_found) if there is none of this name.
    pub async fn get_router(&self, name: &NodeName) -> Result<Router, ClientError> {
        router(self.call(Method::GET, &path(name), None).await?)
    }

    /// All Routers.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn list_routers(&self) -> Result<RouterList, ClientError> {
        let (routers, revision) = self.list(&Selection::all()).await?;
        Ok(RouterList { routers, revision })
    }

    /// Creates a Router.
    ///
    /// # Errors
    /// [`ClientError`]; of class [`Conflict`](super::Class::Conflict) if there is one of this name.
    pub async fn create_router(&self, object: &Router) -> Result<Router, ClientError> {
        router(
            self.call(
                Method::POST,
                &collection(),
                Some(("application/json", encode(object)?)),
            )
            .await?,
        )
    }

    /// Replaces spec and metadata of a Router, if its `metadata.resourceVersion` is the current one.
    ///
    /// # Errors
    /// [`ClientError`]; of class [`Conflict`](super::Class::Conflict) if the Router has changed.
    pub async fn replace_router(&self, object: &Router) -> Result<Router, ClientError> {
        let path = format!("{}/{}", collection(), object.name());
        router(
            self.call(
                Method::PUT,
                &path,
                Some(("application/json", encode(object)?)),
            )
            .await?,
        )
    }

    /// Applies a JSON merge patch (RFC 7396) to spec and metadata of a Router.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn merge_patch_router(
        &self,
        name: &NodeName,
        patch: &Value,
    ) -> Result<Router, ClientError> {
        router(
            self.call(
                Method::PATCH,
                &path(name),
                Some((
                    "application/merge-patch+json",
                    Bytes::from(patch.to_string()),
                )),
            )
            .await?,
        )
    }

    /// Replaces the status of a Router and gives the Router as it is then; a Router that is missing is created with an empty spec.
    ///
    /// The status of another node's Router is only replaced by one with a higher `source.revision`; otherwise the answer is the
    /// Router as it stays.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn apply_status(
        &self,
        name: &NodeName,
        status: &RouterStatus,
    ) -> Result<Router, ClientError> {
        let body = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "status": status});
        let path = format!("{}/status", path(name));
        router(
            self.call(
                Method::PUT,
                &path,
                Some(("application/json", Bytes::from(body.to_string()))),
            )
            .await?,
        )
    }

    /// Makes the status of the server's own node later than `above`, a `source.revision` that another node holds of it, by raising
    /// the server's own numbers; gives the Router as it is then. One that is later already, or that is too far ahead of the clock,
    /// changes nothing.
    ///
    /// # Errors
    /// [`ClientError`]
    pub(crate) async fn raise_status(
        &self,
        name: &NodeName,
        above: Revision,
    ) -> Result<Router, ClientError> {
        let patch = json!({"status": {"source": {"revision": above}}});
        let media = "application/merge-patch+json";
        let path = format!("{}/status", path(name));
        let body = Some((media, Bytes::from(patch.to_string())));
        router(self.call(Method::PATCH, &path, body).await?)
    }

    /// Deletes a Router.
    ///
    /// # Errors
    /// [`ClientError`]; [`is_not_found`](ClientError::is_not_found) if there is none of this name.
    pub async fn delete_router(&self, name: &NodeName) -> Result<(), ClientError> {
        self.call::<Value>(Method::DELETE, &path(name), None)
            .await
            .map(drop)
    }

    /// Replaces the status of an FRPServer.
    ///
    /// # Errors
    /// [`ClientError`]; [`is_not_found`](ClientError::is_not_found) if there is none of this name.
    pub async fn apply_frpserver_status(
        &self,
        name: &str,
        status: &FrpServerStatus,
    ) -> Result<(), ClientError> {
        let about = &FrpServer::ABOUT;
        let body = json!({
            "apiVersion": about.api_version(), "kind": about.kind, "metadata": {"name": name}, "status": status,
        });
        let path = format!("{}/{name}/status", frpservers());
        let body = Some(("application/json", Bytes::from(body.to_string())));
        self.call::<Value>(Method::PUT, &path, body).await.map(drop)
    }

    /// A call whose answer is one JSON object.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<T, ClientError> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json");
        let mut bytes = Bytes::new();
        if let Some((media_type, body)) = body {
            request = request
                .header(header::CONTENT_TYPE, media_type)
                .header(header::CONTENT_LENGTH, body.len());
            bytes = body;
        }
        let request = request
            .body(bytes)
            .map_err(|error| ClientError::Request(error.to_string()))?;
        let answer = self.successful(request).await?;
        self.decode(answer, 4 * MAX_OBJECT).await
    }

    /// Sends a request; every answer but a success is an error.
    async fn successful(&self, request: http::Request<Bytes>) -> Result<Body, ClientError> {
        let (parts, body) = self.request(request).await?.into_parts();
        if parts.status.is_success() {
            return Ok(body);
        }
        Err(ClientError::answer(
            parts.status,
            &self.collect(body, MAX_OBJECT).await?,
        ))
    }

    async fn decode<T: DeserializeOwned>(
        &self,
        body: Body,
        limit: usize,
    ) -> Result<T, ClientError> {
        let bytes = self.collect(body, limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
    }

    async fn collect(&self, body: Body, limit: usize) -> Result<Bytes, ClientError> {
        let server = self.server();
        match timeout(BODY, read(body, limit)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error @ crate::http::ReadError::TooLarge { .. })) => {
                Err(ClientError::Answer(error.to_string()))
            }
            Ok(Err(error)) => Err(ClientError::Interrupted {
                server,
                why: error.to_string(),
            }),
            Err(_) => Err(ClientError::Slow {
                server,
                seconds: BODY.as_secs(),
            }),
        }
    }

    /// The objects, those that cannot be read left out, and the revision that they are of.
    pub(super) async fn list<T: Watched>(
        &self,
        selection: &Selection,
    ) -> Result<(Vec<T>, Revision), ClientError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            metadata: ObjectMeta,
            #[serde(default)]
            items: Vec<Value>,
        }
        // Without a limit or a continue token the answer is one snapshot.
        let path = format!(
            "{}?resourceVersion={}",
            selection.collection,
            selection.query()
        );
        let request = http::Request::get(path)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| ClientError::Request(error.to_string()))?;
        let answer = self.successful(request).await?;
        let list: List = self.decode(answer, selection.max_list).await?;
        let revision = list.metadata.resource_version.ok_or_else(|| {
            ClientError::Answer("the list has no metadata.resourceVersion".to_owned())
        })?;
        let items = list.items.into_iter();
        let objects = items.filter_map(|item| T::read(item).ok()).collect();
        Ok((objects, revision))
    }

    /// Opens a watch behind `after`: whole lines of JSON as they happen.
    pub(super) async fn open_watch(
        &self,
        selection: &Selection,
        after: Revision,
    ) -> Result<Body, ClientError> {
        let path = format!(
            "{}?watch=1&allowWatchBookmarks=true&resourceVersion={after}{}",
            selection.collection,
            selection.query()
        );
        let request = http::Request::get(path)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| ClientError::Request(error.to_string()))?;
        self.successful(request).await
    }
}

fn collection() -> String {
    format!("/apis/{GROUP}/{VERSION}/{PLURAL}")
}

fn frpservers() -> String {
    let about = &FrpServer::ABOUT;
    format!("/apis/{}/{}", about.api_version(), about.plural)
}

fn path(name: &NodeName) -> String {
    format!("{}/{name}", collection())
}

fn encode(object: &Router) -> Result<Bytes, ClientError> {
    serde_json::to_vec(object)
        .map(Bytes::from)
        .map_err(|error| ClientError::Request(error.to_string()))
}

/// Reads a Router. One whose spec this version cannot read, is taken without it: readers live on the status.
pub(super) fn router(mut value: Value) -> Result<Router, ClientError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        ClientError::Answer(format!("a Router cannot be read: {why}"))
    };
    if !value["metadata"]["name"].is_string() {
        return Err(unreadable(&"it has no metadata.name"));
    }
    match Router::deserialize(&value) {
        Ok(router) => Ok(router),
        Err(error) => {
            let Some(fields) = value.as_object_mut() else {
                return Err(unreadable(&error));
            };
            fields.remove("spec");
            serde_json::from_value(value).map_err(|error| unreadable(&error))
        }
    }
}
