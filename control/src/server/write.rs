//! Writing routers: create, replace, patch, delete, and the status subresource.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use keel_certs::{Identity, Namespace, NodeName};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::info;

use super::access::Grant;
use super::change::{self, Birth, Outcome, Part, Preconditions, StatusRule, Written};
use super::patch::Patch;
use super::path::{Collection, Named};
use super::query::Options;
use super::secret::Sight;
use super::{Inner, reply, store_status};
use crate::api::decode::{self, Decoded, Extent, Format, invalid_field};
use crate::api::kind::{About, Names};
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
        if about.is_namespaced() && collection.namespace.is_none() {
            return Err(reply::method_not_allowed(request.method()));
        }
        self.check(identity, "create", &collection.named(""), "")?;
        let decoded = self.decode(collection, request, options).await?;
        let named = collection.named(&new_name(about, &decoded.object)?);
        change::check_namespace(&named, &decoded.object)?;
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
        let (birth, dry_run, subject) = (birth(), options.dry_run, named.clone());
        let audit = Some(Audit::new("create", identity));
        let mut written = self
            .decide(&named, audit, move |current, revision| {
                change::verdict(
                    change::create(current, revision, &subject, decoded.object, &birth),
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
            Method::DELETE => "delete",
            ref method => return Err(reply::method_not_allowed(method)),
        };
        self.check(identity, verb, named, "")?;
        let audit = Some(Audit::new(verb, identity));
        let written = match verb {
            "delete" => return self.delete(named, audit, request, options).await,
            _ => self.update(named, Part::Main, None, audit, request, options),
        };
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
            ref method => return Err(reply::method_not_allowed(method)),
        };
        let about = &named.kind.about;
        let (rule, birth) = match self.check(identity, verb, named, "status")? {
            Grant::Newer => {
                let latest = Revision::latest();
                (StatusRule::Newer { latest }, Some(birth()))
            }
            Grant::Stamped => {
                let highest = Revision::highest_raised();
                (StatusRule::Stamped { highest }, Some(birth()))
            }
            Grant::Full | Grant::EmptySpec => (StatusRule::Plain, None),
        };
        if birth.is_some() {
            check_name(about, &named.name)?;
        }
        // Nodes write statuses all day; a person who does so changes what everybody relies on.
        let audit = (rule == StatusRule::Plain).then(|| Audit::new(verb, identity));
        let part = Part::Status(rule);
        let written = self.update(named, part, birth, audit, request, options);
        Ok(respond(about, written.await?, Sight::of(identity)))
    }

    async fn update(
        &self,
        named: &Named,
        part: Part,
        birth: Option<Birth>,
        audit: Option<Audit>,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Written, Status> {
        let (dry_run, validation, subject) = (options.dry_run, options.validation, named.clone());
        if *request.method() == Method::PATCH {
            let media = media_type(&request);
            let patch = Patch::parse(named.kind, &media, &body(request).await?)?;
            self.decide(named, audit, move |current, revision| {
                let next = |held: &Map<String, Value>| patch.apply(&subject, held, validation);
                change::verdict(
                    change::update(current, revision, &subject, part, birth.as_ref(), next),
                    dry_run,
                )
            })
            .await
        } else {
            let decoded = self.decode(&named.collection(), request, options).await?;
            self.decide(named, audit, move |current, revision| {
                let next = |_: &Map<String, Value>| Ok(decoded);
                change::verdict(
                    change::update(current, revision, &subject, part, birth.as_ref(), next),
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
        let format = format(&request)?;
        let kind = collection.kind;
        let parsed = decode::parse(&body(request).await?, format, kind.about.kind)?;
        decode::object(kind, parsed, options.validation, Extent::Whole)
    }

    async fn delete(
        &self,
        named: &Named,
        audit: Option<Audit>,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let asked = delete_options(&body(request).await?)?;
        let dry_run = options.dry_run || asked.dry_run.iter().any(|value| value == "All");
        let preconditions = asked.preconditions.unwrap_or_default();
        let preconditions = Preconditions {
            uid: preconditions.uid,
            revision: preconditions.resource_version,
        };
        let (now, subject) = (Time::now(), named.clone());
        let written = self
            .decide(named, audit, move |current, revision| {
                change::verdict(
                    change::delete(current, revision, &subject, &preconditions, &now),
                    dry_run,
                )
            })
            .await?;
        let about = &named.kind.about;
        if written.outcome != Outcome::Deleted {
            return Ok(respond(about, written, Sight::Everything));
        }
        let object: Value = serde_json::from_slice(&written.object).unwrap_or_default();
        let uid = object
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let status = Status::deleted(about, &named.name, uid);
        Ok(reply::json(StatusCode::OK, &status))
    }

    async fn decide<F>(
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

/// Who writes, for the line in the log. It is written with the decision, in the store's task: a client that leaves meanwhile cannot
/// keep its write out of the log. A commit that fails after it is an error in the log too.
struct Audit {
    verb: &'static str,
    who: String,
}

impl Audit {
    fn new(verb: &'static str, identity: &Identity) -> Self {
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

fn respond(about: &About, written: Written, sight: Sight) -> Response<Body> {
    let code = if written.outcome == Outcome::Created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = reply::bytes(code, sight.show(about, &written.object));
    reply::warn(&mut response, &written.warnings);
    response
}

fn birth() -> Birth {
    let mut bytes: [u8; 16] = rand::random();
    // Version 4, variant 1: a random UUID (RFC 9562 section 5.4).
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let uid = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    Birth {
        uid,
        at: Time::now(),
    }
}

/// The name of an object to be created: the one given, or one made from `generateName`.
fn new_name(about: &About, object: &Map<String, Value>) -> Result<String, Status> {
    let text = |key: &str| {
        object
            .get("metadata")
            .and_then(|meta| meta.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut name = text("name");
    if name.is_empty() {
        let prefix = text("generateName");
        if prefix.is_empty() {
            return Err(invalid_field(
                about,
                "",
                "metadata.name",
                "",
                "name or generateName is required",
            ));
        }
        let suffix: [u8; 5] = rand::random();
        // No vowels and nothing that looks alike, as Kubernetes does.
        let letters = b"bcdfghjklmnpqrstvwxz2456789";
        name = prefix
            .chars()
            .take(58)
            .chain(
                suffix
                    .iter()
                    .map(|byte| char::from(letters[usize::from(*byte) % letters.len()])),
            )
            .collect();
    }
    check_name(about, &name)?;
    Ok(name)
}

fn check_name(about: &About, name: &str) -> Result<(), Status> {
    let fault = match about.names {
        Names::Node => name
            .parse::<NodeName>()
            .err()
            .map(|error| format!("must be the name of a node: {error}")),
        Names::Label => name
            .parse::<Namespace>()
            .err()
            .map(|error| format!("must be a DNS label: {error}")),
        Names::Subdomain => (!is_subdomain(name)).then(|| {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character"
                .to_owned()
        }),
    };
    match fault {
        None => Ok(()),
        Some(why) => {
            let shown: String = name.chars().take(100).collect();
            Err(invalid_field(about, &shown, "metadata.name", &shown, &why))
        }
    }
}

fn is_subdomain(name: &str) -> bool {
    let is_end = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let label_holds = |label: &str| {
        is_end(label.bytes().next())
            && is_end(label.bytes().last())
            && label.bytes().all(|byte| byte == b'-' || is_end(Some(byte)))
    };
    name.len() <= 253 && name.split('.').all(label_holds)
}

async fn body(request: Request<Body>) -> Result<Bytes, Status> {
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
fn media_type(request: &Request<Body>) -> String {
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

fn format(request: &Request<Body>) -> Result<Format, Status> {
    match media_type(request).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        other => Err(unsupported(other, "application/json, application/yaml")),
    }
}

pub(super) fn unsupported(media: &str, accepted: &str) -> Status {
    let message = format!(
        "the body of the request was in an unknown format ({}) - accepted media types include: {accepted}",
        media.chars().take(100).collect::<String>()
    );
    Status::failure(Reason::UnsupportedMediaType, message)
}

/// Kubernetes' `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    preconditions: Option<DeletePreconditions>,
    dry_run: Vec<String>,
    propagation_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeletePreconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

fn delete_options(bytes: &[u8]) -> Result<DeleteOptions, Status> {
    if bytes.is_empty() {
        return Ok(DeleteOptions::default());
    }
    let value = decode::parse(bytes, Format::Json, "DeleteOptions")?.value;
    let options = DeleteOptions::deserialize(value).map_err(|error| {
        Status::failure(
            Reason::BadRequest,
            format!("these are no DeleteOptions: {error}"),
        )
    })?;
    match options.propagation_policy.as_deref() {
        // Nothing depends on a Router, so all three come to the same.
        None | Some("" | "Background" | "Foreground" | "Orphan") => Ok(options),
        Some(_) => {
            let message = "propagationPolicy: Unsupported value: supported values: \"Background\", \"Foreground\", \"Orphan\"";
            Err(Status::failure(Reason::Invalid, message))
        }
    }
}
