//! Who may do what.
//!
//! |                     | read | create a Router     | replace, patch, delete | status of the own Router | status of another's |
//! |---------------------|------|---------------------|------------------------|--------------------------|---------------------|
//! | pod                 | yes  | no                  | no                     | -                        | no                  |
//! | this node           | yes  | its own, empty spec | no                     | yes, stamped             | yes, if newer       |
//! | another node        | yes  | its own, empty spec | no                     | yes, if newer            | no                  |
//! | admin of this node  | yes  | yes                 | yes                    | -                        | yes                 |
//! | fabric admin        | yes  | yes                 | yes                    | -                        | yes                 |
//! | admin of another    | no   | no                  | no                     | -                        | no                  |
//!
//! Only admins are shown `spec.frps.webServer.password`. Without a client certificate only enrolment answers.
//!
//! "Stamped": the status gets the revision of the commit as its `source.revision`. "If newer": it is taken only if its `source.revision` is higher than the one held; that is how this node
//! keeps what its syncer pulled, and how another node pushes.

use keel_certs::{NodeName, Subject};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// Make a router; the name is known once the body is read.
    Create(Option<&'a str>),
    /// Read routers, and what describes them.
    Read,
    /// Replace, patch or delete a router.
    Write,
    /// Write the status of the router of this name.
    WriteStatus(&'a str),
}

/// Whether somebody may, and with which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// No.
    Denied,
    /// Yes.
    Full,
    /// Yes, as long as the spec is empty, and without finalizers and owners.
    EmptySpec,
    /// Yes, if `status.source.revision` is higher than the one held; a missing router is created.
    Newer,
    /// Yes, and `status.source.revision` is set; a missing router is created.
    Stamped,
}

/// The table.
pub(super) fn grant(subject: &Subject, here: &NodeName, action: Action<'_>) -> Grant {
    match (subject, action) {
        (Subject::FabricAdmin { .. }, _) => Grant::Full,
        (Subject::NodeAdmin { node, .. }, _) if node == here => Grant::Full,
        (Subject::NodeAdmin { .. }, _) => Grant::Denied,

        (Subject::Node { .. } | Subject::Pod { .. }, Action::Read) => Grant::Full,
        (Subject::Pod { .. }, _) => Grant::Denied,

        (Subject::Node { node }, Action::Create(name)) => {
            let own = name.is_none_or(|name| name == node.as_str());
            if own { Grant::EmptySpec } else { Grant::Denied }
        }
        (Subject::Node { .. }, Action::Write) => Grant::Denied,
        (Subject::Node { node }, Action::WriteStatus(name)) => {
            match (node == here, name == node.as_str()) {
                (true, true) => Grant::Stamped,
                (true, false) | (false, true) => Grant::Newer,
                (false, false) => Grant::Denied,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: read; create own; create another's; write; status of the own (or here's) Router; status of another's.
    #[test]
    fn every_cell_of_the_table() {
        use Grant::{Denied, EmptySpec, Full, Newer, Stamped};
        let here: NodeName = "here".parse().unwrap();
        let rows = [
            (
                "/node/here/ns/default/pod/p",
                "here",
                [Full, Denied, Denied, Denied, Denied, Denied],
            ),
            (
                "/node/there/ns/default/pod/p",
                "there",
                [Full, Denied, Denied, Denied, Denied, Denied],
            ),
            (
                "/node/here",
                "here",
                [Full, EmptySpec, Denied, Denied, Stamped, Newer],
            ),
            (
                "/node/there",
                "there",
                [Full, EmptySpec, Denied, Denied, Newer, Denied],
            ),
            (
                "/node/here/admin/root",
                "here",
                [Full, Full, Full, Full, Full, Full],
            ),
            ("/admin/cloud", "here", [Full, Full, Full, Full, Full, Full]),
            (
                "/node/there/admin/root",
                "there",
                [Denied, Denied, Denied, Denied, Denied, Denied],
            ),
        ];
        for (subject, own, expected) in rows {
            let parsed: Subject = subject.parse().unwrap();
            let actions = [
                Action::Read,
                Action::Create(Some(own)),
                Action::Create(Some("third")),
                Action::Write,
                Action::WriteStatus(own),
                Action::WriteStatus("third"),
            ];
            let found = actions.map(|action| grant(&parsed, &here, action));
            assert_eq!(found, expected, "{subject}");
        }
        // "here" is another's router for a node that is not here.
        let there: Subject = "/node/there".parse().unwrap();
        assert_eq!(grant(&there, &here, Action::WriteStatus("here")), Denied);
        assert_eq!(grant(&there, &here, Action::Create(Some("here"))), Denied);
    }
}
