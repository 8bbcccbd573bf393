//! Writing objects: create, replace, patch, and the status subresource.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use keel_certs::Identity;
use serde_json::{Map, Value};
use tracing::info;

use super::access::Grant;
use super::change::{self, Birth, Outcome, Owned, Part, Written};
use super::name::{birth, check_name, new_name};
use super::ownership::Writer;
use super::patch::Patch;
use super::path::{Collection, Named};
use super::query::Options;
use super::secret::Sight;
use super::status::StatusRule;
use super::{Inner, admit, patch, reply, store_status};
use crate::api::decode::{self, Decoded, Extent, Format};
use crate::api::kind::About;
use crate::api::{Reason, Revision, Status, Time};
use crate::http::{Body, ReadError, read};
use crate::store::{Change, Key};

/// Largest body, as Kubernetes has it: 3 MiB.
const MAX_BODY: usize = 3 << 20;

impl Inner {
    pub(super) async fn create(
        &self,
        identity: &Identity,
        collection: &Collection,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let about = &collection.kind.about;
        self.check(identity, "create", &collection.named(""), "")?;
        let writer = writer(identity, &request, options, Part::Main);
        let mut decoded = self.decode(collection, request, options).await?;
        if !about.is_stored {
            return Ok(self.review(identity, collection.kind, decoded.object));
        }
        let named = collection.named(&new_name(about, &decoded.object)?);
        admit::check_namespace(&named, &decoded.object)?;
        admit::check_new(&named, &decoded.object)?;
        let grant = self.check(identity, "create", &named, "")?;
        let spec = decoded.object.get("spec").and_then(Value::as_object);
        let given = |field: &str| {
            let value = decoded
                .object
                .get("metadata")
                .and_then(|meta| meta.get(field));
            value
                .and_then(Value::as_array)
                .is_some_and(|items| !items.is_empty())
        };
        // Finalizers would keep its Router from being deleted, and those who may take them away are others.
        if grant == Grant::EmptySpec
            && (spec.is_some_and(|spec| !spec.is_empty())
                || given("finalizers")
                || given("ownerReferences"))
        {
            let message = format!(
                "{} {:?} is forbidden: a node creates its Router with an empty spec only, and without finalizers and ownerReferences",
                about.resource, named.name
            );
            return Err(Status::about(
                about,
                Reason::Forbidden,
                &named.name,
                message,
            ));
        }
        let (birth, dry_run, subject) = (birth(), options.dry_run, named.kept());
        collection.kind.keep(&mut decoded.object);
        let audit = Some(Audit::new("create", identity));
        let mut written = self
            .decide(&named, audit, move |current, revision| {
                change::verdict(
                    current,
                    change::create(current, revision, &subject, decoded.object, &birth, &writer),
                    dry_run,
                )
            })
            .await?;
        written.warnings = decoded.warnings;
        Ok(respond(about, written, Sight::of(identity)))
    }

    pub(super) async fn write(
        &self,
        identity: &Identity,
        named: &Named,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let verb = match *request.method() {
            Method::PUT => "update",
            Method::PATCH => "patch",
            // Refused before it comes here.
            _ => return Err(reply::no_such_path()),
        };
        self.check(identity, verb, named, "")?;
        let audit = Some(Audit::new(verb, identity));
        // Applying makes what is missing, for whom may make it.
        let may_create = media_type(&request) == patch::APPLY
            && self.check(identity, "create", named, "") == Ok(Grant::Full);
        let birth = may_create.then(birth);
        if may_create {
            check_name(&named.kind.about, &named.name)?;
        }
        let written = self.update(identity, named, Part::Main, birth, audit, request, options);
        Ok(respond(
            &named.kind.about,
            written.await?,
            Sight::of(identity),
        ))
    }

    pub(super) async fn write_status(
        &self,
        identity: &Identity,
        named: &Named,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let verb = match *request.method() {
            Method::PUT => "update",
            Method::PATCH => "patch",
            // Refused before it comes here.
            _ => return Err(reply::no_such_path()),
        };
        let about = &named.kind.about;
        let grant = self.check(identity, verb, named, "status")?;
        let (rule, birth) = match grant {
            Grant::Newer | Grant::Kept => {
                let marks = grant == Grant::Kept;
                if !marks {
                    self.pushes.take(&named.name)?;
                }
                let latest = Revision::latest();
                (StatusRule::Newer { latest, marks }, Some(birth()))
            }
            Grant::Stamped => {
                let highest = Revision::highest_raised();
                (StatusRule::Stamped { highest }, Some(birth()))
            }
            Grant::Full | Grant::EmptySpec | Grant::Reported => (StatusRule::Plain, None),
        };
        if birth.is_some() {
            check_name(about, &named.name)?;
        }
        // Nodes write statuses all day; a person who does so changes what everybody relies on.
        let audit = (grant == Grant::Full).then(|| Audit::new(verb, identity));
        let part = Part::Status(rule);
        let written = self.update(identity, named, part, birth, audit, request, options);
        let written = written.await?;
        if grant == Grant::Newer {
            self.pushes.wrote(&named.name, written.object.len());
        }
        Ok(respond(about, written, Sight::of(identity)))
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "all of them are what the request says"
    )]
    async fn update(
        &self,
        identity: &Identity,
        named: &Named,
        part: Part,
        birth: Option<Birth>,
        audit: Option<Audit>,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Written, Status> {
        let (dry_run, validation, subject) = (options.dry_run, options.validation, named.kept());
        let writer = writer(identity, &request, options, part);
        if *request.method() == Method::PATCH {
            let media = media_type(&request);
            let patch = Patch::parse(named.kind, &media, &body(request).await?, options)?;
            // Who is not shown everything writes statuses only, so nothing is lost of what the patch does not see.
            let (sight, asked) = (Sight::of(identity), named.clone());
            self.decide(named, audit, move |current, revision| {
                let owned = match patch.is_apply() {
                    true => Owned::Applied,
                    false => Owned::Changed(&writer),
                };
                let next = |held: &Map<String, Value>| {
                    let patched = patch.apply(&asked, held, validation, &writer, sight)?;
                    admit::check_identity(&subject, held, &patched.object)?;
                    Ok(patched)
                };
                let birth = birth.as_ref();
                change::verdict(
                    current,
                    change::update(current, revision, &subject, part, birth, owned, next),
                    dry_run,
                )
            })
            .await
        } else {
            let mut decoded = self.decode(&named.collection(), request, options).await?;
            named.kind.keep(&mut decoded.object);
            self.decide(named, audit, move |current, revision| {
                let owned = Owned::Changed(&writer);
                let next = |held: &Map<String, Value>| {
                    admit::check_identity(&subject, held, &decoded.object)?;
                    // Statuses are ordered by their source, and reported without a look at what is held.
                    if part == Part::Main {
                        admit::check_versioned(&subject, &decoded.object)?;
                    }
                    Ok(decoded)
                };
                let birth = birth.as_ref();
                change::verdict(
                    current,
                    change::update(current, revision, &subject, part, birth, owned, next),
                    dry_run,
                )
            })
            .await
        }
    }

    /// Reads and checks a whole object.
    async fn decode(
        &self,
        collection: &Collection,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Decoded, Status> {
        let kind = collection.kind;
        let format = format(&kind.about, &request)?;
        let mut parsed = decode::parse(&body(request).await?, format, kind.about.kind)?;
        if let Some(namespace) = &collection.namespace {
            parsed.place(namespace);
        }
        decode::object(kind, parsed, options.validation, Extent::Whole)
    }

    pub(super) async fn decide<F>(
        &self,
        named: &Named,
        audit: Option<Audit>,
        decide: F,
    ) -> Result<Written, Status>
    where
        F: FnOnce(Option<&crate::store::Object>, Revision) -> change::Verdict + Send + 'static,
    {
        let key = named.key();
        let subject = key.clone();
        let audited = move |current: Option<&crate::store::Object>, revision| {
            let verdict = decide(current, revision);
            if let Some(audit) = audit
                && !matches!(verdict.0, Change::Keep)
            {
                audit.log(&subject, revision);
            }
            verdict
        };
        self.store
            .write(key, audited)
            .await
            .map_err(|error| store_status(&error))?
    }
}

/// Who owns what a request writes: what it says, or the program that sends it, or the caller.
fn writer(identity: &Identity, request: &Request<Body>, options: &Options, part: Part) -> Writer {
    let agent = request.headers().get(USER_AGENT);
    let agent = agent
        .and_then(|agent| agent.to_str().ok()?.split('/').next())
        .filter(|agent| !agent.is_empty());
    let manager = match (options.manager.as_str(), agent) {
        ("", Some(agent)) => agent.chars().take(128).collect(),
        ("", None) => identity.subject.to_string(),
        (manager, _) => manager.to_owned(),
    };
    Writer {
        manager,
        status: part != Part::Main,
        at: Time::now().as_str().to_owned(),
    }
}

/// Who writes, for the line in the log. It is written with the decision, in the store's task: a client that leaves meanwhile cannot
/// keep its write out of the log. A commit that fails after it is an error in the log too.
pub(super) struct Audit {
    verb: &'static str,
    who: String,
}

impl Audit {
    pub(super) fn new(verb: &'static str, identity: &Identity) -> Self {
        Self {
            verb,
            who: identity.to_string(),
        }
    }

    fn log(&self, key: &Key, revision: Revision) {
        let (resource, name) = (key.resource.as_ref(), key.name.as_str());
        info!(verb = self.verb, resource, name, who = self.who, %revision, "object written");
    }
}

pub(super) fn respond(about: &About, written: Written, sight: Sight) -> Response<Body> {
    let code = if written.outcome == Outcome::Created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = reply::bytes(code, sight.show(about, &written.object));
    reply::warn(&mut response, &written.warnings);
    response
}

pub(super) async fn body(request: Request<Body>) -> Result<Bytes, Status> {
    read(request.into_body(), MAX_BODY)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge { limit } => Status::failure(
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {limit}"),
            ),
            ReadError::Broken(error) => Status::failure(
                Reason::BadRequest,
                format!("the body could not be read: {error}"),
            ),
        })
}

/// The media type of the body without its parameters, in lower case.
pub(super) fn media_type(request: &Request<Body>) -> String {
    let value = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Kubernetes' binary encoding.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn format(about: &About, request: &Request<Body>) -> Result<Format, Status> {
    match (media_type(request).as_str(), about.protobuf) {
        ("" | "application/json", _) => Ok(Format::Json),
        ("application/yaml" | "application/x-yaml" | "text/yaml", _) => Ok(Format::Yaml),
        (PROTOBUF, Some(message)) => Ok(Format::Protobuf(message)),
        (other, _) => Err(unsupported(other, "application/json, application/yaml")),
    }
}

pub(super) fn unsupported(media: &str, accepted: &str) -> Status {
    let message = format!(
        "the body of the request was in an unknown format ({}) - accepted media types include: {accepted}",
        media.chars().take(100).collect::<String>()
    );
    Status::failure(Reason::UnsupportedMediaType, message)
}
