//! One connection at the router.

use std::pin::pin;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clients::Client;
use super::identities::Share;
use super::{Shared, answers, control, stream};
use crate::quic::{Connection, Incoming};
use crate::wire::{CloseCode, ResetCode};

/// New streams of a connection that are taken in a row before others have their turn. One that is over its limits waits after
/// each: a thousand that are refused at once would hold everybody up for milliseconds.
const AT_ONCE: usize = 16;

/// A connection whose peer is known and within its budget.
pub(super) struct Admitted {
    connection: Connection,
    client: Arc<Client>,
    share: Share,
}

/// Does the handshake and decides whether the peer is welcome.
pub(super) async fn admit(shared: Arc<Shared>, incoming: Incoming) -> Option<Admitted> {
    let remote = incoming.remote_address();
    let connection =
        match tokio::time::timeout(shared.limits.handshake_time, incoming.handshake()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "handshake failed");
                return None;
            }
            Err(_) => {
                shared.metrics.hit("handshake_time");
                return None;
            }
        };
    let identity = match connection.peer() {
        Ok(Some(peer)) => peer.identity.subject.clone(),
        Ok(None) => return refuse(&connection, CloseCode::Forbidden, "no certificate"),
        Err(error) => return refuse(&connection, CloseCode::Forbidden, &error.to_string()),
    };
    if shared.clients.len() >= shared.limits.connections {
        shared.metrics.hit("connections");
        return refuse(&connection, CloseCode::Limit, "too many connections");
    }
    let Some(share) = shared
        .identities
        .connect(&identity, &shared.limits, Instant::now())
    else {
        shared.metrics.hit("connections_per_identity");
        return refuse(
            &connection,
            CloseCode::Limit,
            "too many connections of this identity",
        );
    };
    tracing::debug!(%remote, %identity, "connected");
    let client = shared.clients.add(identity, connection.clone());
    Some(Admitted {
        connection,
        client,
        share,
    })
}

fn refuse(connection: &Connection, code: CloseCode, reason: &str) -> Option<Admitted> {
    tracing::warn!(remote = %connection.remote_address(), reason, "connection refused");
    connection.close(code.to_wire(), reason.as_bytes());
    None
}

/// Serves a connection until it ends: its first stream is the control stream, every other one a leg.
pub(super) async fn serve(shared: Arc<Shared>, admitted: Admitted) {
    let Admitted {
        connection,
        client,
        share,
    } = admitted;
    let _gone = Gone {
        shared: &shared,
        client: &client,
    };
    shared.metrics.router_connections.inc();
    shared.changed.notify_one();
    let mut observing = pin!(answers::observe(&shared, &client));
    let mut control = JoinSet::new();
    let mut legs: JoinSet<stream::Outcome> = JoinSet::new();
    let mut first = true;
    let mut in_a_row = 0;
    let lost = loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok(stream) if first => {
                    first = false;
                    let allowance = share.allowance();
                    control.spawn(control::serve(Arc::clone(&shared), Arc::clone(&client), allowance, stream));
                }
                Ok((mut send, mut recv)) => {
                    let allowance = share.allowance();
                    let limit = if legs.len() >= shared.limits.streams {
                        Some("streams")
                    } else if !allowance.stream(&shared.limits, Instant::now()) {
                        Some("opens")
                    } else {
                        None
                    };
                    if let Some(name) = limit {
                        shared.metrics.hit(name);
                        send.reset(ResetCode::Limit.to_wire());
                        recv.stop(ResetCode::Limit.to_wire());
                        in_a_row = AT_ONCE;
                    } else {
                        legs.spawn(stream::serve(Arc::clone(&shared), Arc::clone(&client), allowance, send, recv));
                    }
                    in_a_row += 1;
                    if in_a_row >= AT_ONCE {
                        in_a_row = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(lost) => break lost,
            },
            Some(done) = legs.join_next() => match done {
                Ok(stream::Outcome::Served) => {}
                Ok(stream::Outcome::Empty) => if share.flood(&shared.limits, Instant::now()) {
                    shared.metrics.hit("flood");
                    connection.close(CloseCode::Limit.to_wire(), b"too many streams were opened and cut");
                },
                Err(error) => tracing::error!(%error, "a leg's task failed"),
            },
            () = &mut observing => {}
            Some(done) = control.join_next() => if let Err(error) = done {
                tracing::error!(%error, "a control stream's task failed");
            },
        }
    };
    tracing::debug!(identity = %client.identity, %lost, "disconnected");
    // Both streams of a splice must be cut, not dropped: the legs see the loss themselves and do that.
    control.shutdown().await;
    while legs.join_next().await.is_some() {}
}

/// Takes the connection out of the books however its task ends.
struct Gone<'a> {
    shared: &'a Shared,
    client: &'a Client,
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.shared.clients.remove(self.client);
        self.shared.drain.forget(self.client.id);
        self.shared.metrics.router_connections.dec();
        self.shared.changed.notify_one();
    }
}
