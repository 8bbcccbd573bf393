//! Who may do what: the table [`TABLE`], and how a question is looked up in it. What no row allows is refused.
//!
//! Without a client certificate only enrolment answers. An admin of another node has no row, so it may do nothing here. Only who may
//! do everything is shown the secrets of an object (the password of a Router's or an FRPServer's `webServer`).

use http::HeaderMap;
use keel_certs::{Identity, NodeName, Subject};

use crate::api::{Reason, Status};

use Grant::{EmptySpec, Full, Kept, Newer, Reported, Stamped};
use Names::{Any, Other, Own};
use Who::{Admin, AnotherNode, Pod, ThisNode};

/// The groups of callers that the table knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// An admin of this node, or of the whole fabric.
    Admin,
    /// A node that is not this one: its Syncer.
    AnotherNode,
    /// A pod, or a sidecar that plays the part of one.
    Pod,
    /// The node whose APIServer this is: its Router and its Syncer.
    ThisNode,
}

/// Which objects a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    Any,
    /// All but the one that is called like the caller's node.
    Other,
    /// The one that is called like the caller's node.
    Own,
}

/// Whether somebody may, and with which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Yes, as long as the spec is empty, and without finalizers and owners.
    EmptySpec,
    /// Yes.
    Full,
    /// As `Newer`; and under the number that is held, whether it may be old (the condition `Synced`).
    Kept,
    /// Yes, if `status.source.revision` is higher than the one held; a missing object is created.
    Newer,
    /// Yes, if the object is there. Written all day, so it is not in the log.
    Reported,
    /// Yes, and `status.source.revision` is set to the revision of the commit; a missing object is created.
    Stamped,
}

/// Some callers may use some verbs on some resources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) who: &'static [Who],
    pub(super) verbs: &'static [&'static str],
    /// Resources with their group, a subresource behind a slash.
    pub(super) resources: &'static [&'static str],
    pub(super) names: Names,
    pub(super) grant: Grant,
}

/// Everything there is: verbs, or resources.
pub(super) const ALL: &[&str] = &["*"];
const EVERYBODY: &[Who] = &[Admin, ThisNode, AnotherNode, Pod];
const READ: &[&str] = &["get", "list", "watch"];
const CHANGE: &[&str] = &["patch", "update"];
const STATUS: &[&str] = &["routers.edge.example.com/status"];
const FRPSERVER_STATUS: &[&str] = &["frpservers.tunnel.kubeinfra.io/status"];

/// The table: the first row that fits decides.
#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    Row { who: &[Admin],                 verbs: ALL,         resources: ALL,                           names: Any,   grant: Full },
    Row { who: EVERYBODY,                verbs: READ,        resources: READABLE,                      names: Any,   grant: Full },
    Row { who: EVERYBODY,                verbs: &["create"], resources: REVIEWS,                       names: Any,   grant: Full },
    // A node makes the Router that it reports into, and nobody else's.
    Row { who: &[ThisNode, AnotherNode], verbs: &["create"], resources: &["routers.edge.example.com"], names: Own,   grant: EmptySpec },
    // A node reports about itself; its Syncer keeps here what it pulled from others.
    Row { who: &[ThisNode],              verbs: CHANGE,      resources: STATUS,                        names: Own,   grant: Stamped },
    Row { who: &[ThisNode],              verbs: CHANGE,      resources: STATUS,                        names: Other, grant: Kept },
    // And into the FRPServer that its Router follows.
    Row { who: &[ThisNode],              verbs: CHANGE,      resources: FRPSERVER_STATUS,              names: Any,   grant: Reported },
    // A node behind NAT pushes what it reports about itself.
    Row { who: &[AnotherNode],           verbs: CHANGE,      resources: STATUS,                        names: Own,   grant: Newer },
];

/// Questions about oneself.
const REVIEWS: &[&str] = &[
    "selfsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectreviews.authentication.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
];

/// What every identity of the fabric may read.
const READABLE: &[&str] = &[
    "events",
    "events.events.k8s.io",
    "frpservers.tunnel.kubeinfra.io",
    "frpservers.tunnel.kubeinfra.io/status",
    "namespaces",
    "namespaces/status",
    "routers.edge.example.com",
    "routers.edge.example.com/status",
];

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish<'a> {
    pub(super) verb: &'a str,
    /// Resource with its group, a subresource behind a slash.
    pub(super) resource: &'a str,
    /// `None` if it is not known yet, or about all of them.
    pub(super) name: Option<&'a str>,
}

/// Who the subject is at this node; `None` if the table does not know it.
pub(super) fn who(subject: &Subject, here: &NodeName) -> Option<Who> {
    match subject {
        Subject::FabricAdmin { .. } => Some(Admin),
        Subject::NodeAdmin { node, .. } => (node == here).then_some(Admin),
        Subject::Node { node } if node == here => Some(ThisNode),
        Subject::Node { .. } => Some(AnotherNode),
        Subject::Pod { .. } => Some(Pod),
    }
}

/// Whether the subject may, and with which rule.
pub(super) fn grant(subject: &Subject, here: &NodeName, wish: Wish<'_>) -> Option<Grant> {
    let who = who(subject, here)?;
    let own = match subject {
        Subject::Node { node } => Some(node.as_str()),
        _ => None,
    };
    let names_fit = |names: Names| match (names, wish.name) {
        (Any, _) => true,
        (Own, Some(name)) => own == Some(name),
        (Other, Some(name)) => own != Some(name),
        // Whether it is the own one shows when the body is read.
        (Own, None) => wish.verb == "create",
        (Other, None) => false,
    };
    let has = |all: &[&str], one: &str| all == ALL || all.contains(&one);
    let row = TABLE.iter().find(|row| {
        row.who.contains(&who)
            && has(row.verbs, wish.verb)
            && has(row.resources, wish.resource)
            && names_fit(row.names)
    });
    row.map(|row| row.grant)
}

/// Refuses to act as somebody else: who asks for that and is answered as himself believes that the other one may do this, too.
///
/// # Errors
/// `Forbidden`, in Kubernetes' words.
pub(super) fn as_oneself(identity: &Identity, headers: &HeaderMap) -> Result<(), Status> {
    let Some(name) = headers
        .keys()
        .find(|name| name.as_str().starts_with("impersonate-"))
    else {
        return Ok(());
    };
    let user = headers
        .get("impersonate-user")
        .and_then(|user| user.to_str().ok());
    let (resource, of) = match user {
        Some(user) => ("users", user),
        None => ("userextras", name.as_str()),
    };
    Err(Status::failure(
        Reason::Forbidden,
        format!(
            "{resource} {of:?} is forbidden: User \"{identity}\" cannot impersonate resource {resource:?} in API group \"\" at the cluster scope"
        ),
    ))
}

/// Whether the subject may read what describes the server: versions, discovery, OpenAPI, health.
pub(super) fn may_look(subject: &Subject, here: &NodeName) -> bool {
    who(subject, here).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kind::KINDS;

    const CALLERS: [&str; 7] = [
        "/admin/cloud",
        "/node/here/admin/root",
        "/node/there/admin/root",
        "/node/here",
        "/node/there",
        "/node/here/ns/default/pod/p",
        "/node/there/ns/default/pod/p",
    ];
    const VERBS: [&str; 9] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "fly",
    ];

    fn granted(caller: &str, verb: &str, resource: &str, name: Option<&str>) -> Option<Grant> {
        let here: NodeName = "here".parse().unwrap();
        let wish = Wish {
            verb,
            resource,
            name,
        };
        grant(&caller.parse().unwrap(), &here, wish)
    }

    /// Every caller, every resource, every verb, every kind of name: what is not written here again is refused.
    #[test]
    fn the_full_matrix() {
        let mut resources: Vec<String> = vec!["pods".into(), "*".into()];
        for kind in &KINDS {
            resources.push(kind.about.resource.into());
            resources.push(format!("{}/status", kind.about.resource));
        }
        let mut granted_cells = 0;
        for caller in CALLERS {
            for resource in &resources {
                for verb in VERBS {
                    for name in [None, Some("here"), Some("there"), Some("third")] {
                        let found = granted(caller, verb, resource, name);
                        let expected = expected(caller, verb, resource, name);
                        assert_eq!(found, expected, "{caller} {verb} {resource} {name:?}");
                        granted_cells += usize::from(found.is_some());
                    }
                }
            }
        }
        assert!(granted_cells > 100, "the matrix says something");
    }

    /// The rules again, in sentences instead of rows.
    fn expected(caller: &str, verb: &str, resource: &str, name: Option<&str>) -> Option<Grant> {
        if matches!(caller, "/admin/cloud" | "/node/here/admin/root") {
            return Some(Full);
        }
        if caller == "/node/there/admin/root" {
            return None;
        }
        let kept = ["events", "namespaces", "frpservers", "routers"];
        let is_kept = kept.iter().any(|kept| resource.starts_with(kept));
        if matches!(verb, "get" | "list" | "watch")
            && is_kept
            && !(resource.starts_with("events") && resource.ends_with("/status"))
        {
            return Some(Full);
        }
        if verb == "create" && resource.starts_with("selfsubject") && !resource.ends_with("/status")
        {
            return Some(Full);
        }
        let own = match caller {
            "/node/here" => "here",
            "/node/there" => "there",
            _ => return None,
        };
        match (resource, verb) {
            ("frpservers.tunnel.kubeinfra.io/status", "update" | "patch") => {
                (own == "here").then_some(Reported)
            }
            ("routers.edge.example.com", "create") => {
                name.is_none_or(|name| name == own).then_some(EmptySpec)
            }
            ("routers.edge.example.com/status", "update" | "patch") => match (own, name?) {
                ("here", "here") => Some(Stamped),
                ("here", _) => Some(Kept),
                ("there", "there") => Some(Newer),
                _ => None,
            },
            _ => None,
        }
    }
}
