//! `Status`: how Kubernetes clients are told what went wrong, or that a deletion went well.

use std::borrow::Cow;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kind::About;
use super::schema;
use super::validate::FieldError;

/// Bytes of a message.
const MAX_MESSAGE: usize = 16 << 10;
/// How much of a name is told: all of one that an object may have.
pub(crate) const MAX_NAME: usize = 256;

/// Kubernetes' `Status` object.
#[derive(
    Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, thiserror::Error,
)]
#[serde(rename_all = "camelCase", default)]
#[error("{message}")]
pub struct Status {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    pub api_version: String,
    /// Empty, but clients expect it.
    pub metadata: Nothing,
    /// `Success` or `Failure`.
    pub status: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// One word for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub reason: Option<Reason>,
    /// What the message is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// The HTTP status code.
    pub code: u16,
}

/// An object without fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nothing {}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (or kind) of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Identity of the object that was deleted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The fields that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// How many seconds to wait before trying again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cause {
    /// One word for programs, e.g. `FieldValueInvalid`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// Kubernetes' words for why a request failed. The closed table of what this server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// An object of that name is there already.
    AlreadyExists,
    /// The request makes no sense.
    BadRequest,
    /// The object is not what the caller thinks it is.
    Conflict,
    /// The revision asked for is compacted away.
    Expired,
    /// The caller may not do that.
    Forbidden,
    /// The server failed.
    InternalError,
    /// The object has wrong content.
    Invalid,
    /// The path does not take that method.
    MethodNotAllowed,
    /// The client takes nothing that there is.
    NotAcceptable,
    /// There is no such object or path.
    NotFound,
    /// The body is too large.
    RequestEntityTooLarge,
    /// The server cannot do it now.
    ServiceUnavailable,
    /// The server did not get that far in time.
    Timeout,
    /// The caller has too much open at once.
    TooManyRequests,
    /// The caller has no identity.
    Unauthorized,
    /// The body is in a format that this path does not take.
    UnsupportedMediaType,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// The HTTP status code that goes with the reason.
    #[must_use]
    pub fn code(self) -> StatusCode {
        match self {
            Self::AlreadyExists | Self::Conflict => StatusCode::CONFLICT,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Expired => StatusCode::GONE,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::InternalError | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::RequestEntityTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }
}

/// The first `most` bytes of what somebody sent, to be told to them; what is left out is marked.
pub(crate) fn shown(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(most);
    Cow::Owned(format!("{}...", &text[..end]))
}

impl Status {
    /// What it looks like.
    pub(crate) fn schema() -> Value {
        schema::of::<Self>()
    }

    /// A failure without details. A message is as long as a person may read.
    pub fn failure(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Failure".into(),
            message: shown(&message.into(), MAX_MESSAGE).into_owned(),
            reason: Some(reason),
            code: reason.code().as_u16(),
            ..Self::default()
        }
    }

    /// A failure that is about the object of this kind and name.
    pub(crate) fn about(
        about: &About,
        reason: Reason,
        name: &str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            details: Some(Box::new(details(about, name))),
            ..Self::failure(reason, message)
        }
    }

    /// There is no object of this name.
    pub(crate) fn not_found(about: &About, name: &str) -> Self {
        let message = format!("{} {name:?} not found", about.resource);
        Self::about(about, Reason::NotFound, name, message)
    }

    /// The object is no longer what the writer thinks it is.
    pub(crate) fn conflict(about: &About, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            about.resource
        );
        Self::about(about, Reason::Conflict, name, message)
    }

    /// The options of a request are wrong; Kubernetes has a kind for those of each verb: `DeleteOptions`.
    pub(crate) fn invalid_options(kind: &str, error: &FieldError) -> Self {
        let details = Details {
            group: "meta.k8s.io".into(),
            kind: kind.into(),
            causes: vec![error.cause()],
            ..Details::default()
        };
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {}", error.text());
        Self {
            details: Some(Box::new(details)),
            ..Self::failure(Reason::Invalid, message)
        }
    }

    /// The revision is compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(Reason::Expired, message)
    }

    /// The revision is ahead of this server.
    pub fn too_large(asked: super::Revision, current: super::Revision) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Cause::default()
        };
        let details = Details {
            causes: vec![cause],
            retry_after_seconds: Some(1),
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::failure(Reason::Timeout, message)
        }
    }

    /// The caller has too much open at once.
    pub fn too_many(message: impl Into<String>) -> Self {
        let details = Details {
            retry_after_seconds: Some(10),
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::failure(Reason::TooManyRequests, message)
        }
    }

    /// The database is away, which mostly takes seconds.
    pub(crate) fn away(message: impl Into<String>) -> Self {
        let details = Details {
            retry_after_seconds: Some(1),
            ..Details::default()
        };
        Self {
            details: Some(Box::new(details)),
            ..Self::failure(Reason::ServiceUnavailable, message)
        }
    }

    /// The object was deleted.
    pub(crate) fn deleted(about: &About, name: &str, uid: &str) -> Self {
        let details = Details {
            uid: uid.into(),
            ..details(about, name)
        };
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Success".into(),
            details: Some(Box::new(details)),
            code: 200,
            ..Self::default()
        }
    }

    /// Whether one of the causes has this reason.
    #[must_use]
    pub fn has_cause(&self, reason: &str) -> bool {
        self.details
            .iter()
            .flat_map(|details| &details.causes)
            .any(|cause| cause.reason == reason)
    }
}

fn details(about: &About, name: &str) -> Details {
    Details {
        name: shown(name, MAX_NAME).into(),
        group: about.group.into(),
        kind: about.plural.into(),
        ..Details::default()
    }
}
