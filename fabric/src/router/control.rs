//! The router's side of a connection's control stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::time::Instant;

use super::Shared;
use super::clients::Client;
use super::identities::Allowance;
use super::route::{Provider, ServiceKey, may_publish};
use super::splice::Stream;
use crate::wire::{CloseCode, Message, MessageDecoder, Offer, RefuseCode, VERSION};

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Publications of one connection, withdrawn when it ends.
struct Published<'a> {
    shared: &'a Shared,
    client: &'a Arc<Client>,
    ids: BTreeMap<u64, ServiceKey>,
}

/// Serves the stream until it or its connection ends.
///
/// An identity that publishes and withdraws faster than it may is read slower: each change is told to the whole fabric.
pub(super) async fn serve(
    shared: Arc<Shared>,
    client: Arc<Client>,
    allowance: Allowance,
    (mut send, mut recv): Stream,
) {
    let mut published = Published {
        shared: &shared,
        client: &client,
        ids: BTreeMap::new(),
    };
    let mut decoder = MessageDecoder::new();
    let mut out = BytesMut::new();
    let mut told = false;
    let software = concat!("keel-fabric ", env!("CARGO_PKG_VERSION")).to_owned();
    Message::Hello {
        version: VERSION,
        software,
        instance: None,
    }
    .encode(&mut out);
    loop {
        // Answers are written before more is read, so a peer that does not read them stops itself.
        if !out.is_empty() && send.write_chunk(out.split().freeze()).await.is_err() {
            return;
        }
        let chunk = tokio::select! {
            chunk = recv.read_chunk(CHUNK) => chunk,
            () = shared.drain.begun(), if !told => {
                told = true;
                Message::Drain.encode(&mut out);
                continue;
            }
        };
        let Ok(Some(chunk)) = chunk else {
            return;
        };
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(message)) => {
                    if let Message::Publish { .. } | Message::Withdraw { .. } = message {
                        let wait = allowance.change(&shared.limits, Instant::now());
                        if !wait.is_zero() {
                            shared.metrics.hit("publication_changes");
                            if send.write_chunk(out.split().freeze()).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(wait).await;
                        }
                    }
                    published.take(message, &mut out);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(identity = %client.identity, %error, "control stream cannot be read");
                    client
                        .connection
                        .close(CloseCode::Protocol.to_wire(), error.to_string().as_bytes());
                    return;
                }
            }
        }
    }
}

impl Published<'_> {
    fn take(&mut self, message: Message, out: &mut BytesMut) {
        match message {
            Message::Publish {
                id,
                service,
                port,
                protocol,
                offer,
            } => {
                let key = ServiceKey {
                    service,
                    port,
                    protocol,
                };
                let outcome = self.publish(id, key, offer);
                Message::Answer { id, outcome }.encode(out);
            }
            Message::Withdraw { id } => {
                let outcome = match self.ids.remove(&id) {
                    Some(key) => {
                        self.withdraw(&key);
                        Ok(())
                    }
                    None => Err((
                        RefuseCode::UnknownService,
                        format!("nothing was published under {id}"),
                    )),
                };
                Message::Answer { id, outcome }.encode(out);
            }
            Message::Hello {
                version,
                software,
                instance,
            } => {
                tracing::debug!(identity = %self.client.identity, version, software, "hello");
                if let Some(instance) = instance {
                    self.replaces(instance);
                }
            }
            // A peer that stops withdraws what it publishes; answers are for dialling sides.
            Message::Answer { .. } | Message::Drain => {}
            Message::Moved | Message::Nowhere => {
                tracing::debug!(identity = %self.client.identity, answer = ?message, "answers the drain");
                self.shared.drain.answered(self.client.id);
            }
        }
    }

    /// Closes the connection whose place this one takes: its process gave it up, and may have been unable to say so. The
    /// flows over it would wait for its idle time.
    fn replaces(&self, instance: u64) {
        for old in self.shared.clients.replaced(self.client, instance) {
            tracing::info!(identity = %old.identity, remote = %old.connection.remote_address(), "a newer connection took the place of this one");
            let code = CloseCode::Replaced.to_wire();
            old.connection.close(code, b"there is a newer one");
        }
    }

    fn publish(
        &mut self,
        id: u64,
        key: ServiceKey,
        offer: Offer,
    ) -> Result<(), (RefuseCode, String)> {
        let identity = &self.client.identity;
        if self.shared.drain.has_begun() {
            return Err((RefuseCode::Draining, "this router stops".to_owned()));
        }
        may_publish(identity, &key.service)
            .inspect_err(|(_, text)| tracing::warn!(%identity, text, "publication refused"))?;
        let before = self.ids.iter().find(|(_, other)| **other == key);
        let before = before.map(|(id, _)| *id);
        if before.is_none() && self.ids.len() >= self.shared.limits.publications {
            self.shared.metrics.hit("publications");
            return Err((
                RefuseCode::Limit,
                format!("at most {} publications", self.shared.limits.publications),
            ));
        }
        if self.ids.contains_key(&id) {
            return Err((
                RefuseCode::Malformed,
                format!("{id} is in use on this connection"),
            ));
        }
        if before.is_none() {
            tracing::info!(%identity, service = %key.service, port = key.port, protocol = %key.protocol, "published here");
        } else {
            tracing::debug!(%identity, service = %key.service, port = key.port, ?offer, "published anew");
        }
        let provider = Provider {
            connection: Arc::clone(self.client),
            connection_id: self.client.id,
            instance: self.client.instance.get().copied(),
            since: SystemTime::now(),
            offer,
            silent: self.client.answers.is_silent(),
        };
        let mut table = self.shared.table();
        if before.is_none()
            && let Some(other) = table.on_another_node(&key, identity)
        {
            tracing::warn!(service = %key.service, port = key.port, new = %identity, %other, "providers on several nodes");
        }
        let shared = table.publish(key.clone(), identity.clone(), provider);
        if before.is_none() {
            table
                .alike(&key, identity)
                .for_each(|other| other.displaced());
        }
        drop(table);
        if shared && before.is_none() {
            tracing::warn!(
                %identity, service = %key.service, port = key.port,
                "another process with this identity publishes it as well, or died a moment ago: new connections go to the one that came last"
            );
        }
        self.client.provides(&key);
        if let Some(before) = before {
            self.ids.remove(&before);
        }
        self.ids.insert(id, key);
        self.shared.changed.notify_one();
        self.shared.parking.arrived();
        Ok(())
    }

    fn withdraw(&self, key: &ServiceKey) {
        let identity = &self.client.identity;
        self.client.provides_no_more(key);
        let mut table = self.shared.table();
        let changed = table.withdraw(key, identity, self.client.id, |other| other.is_alive());
        drop(table);
        if changed {
            tracing::info!(%identity, service = %key.service, port = key.port, "withdrawn here");
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        for key in std::mem::take(&mut self.ids).into_values() {
            self.withdraw(&key);
        }
        let (identity, id) = (&self.client.identity, self.client.id);
        self.shared.table().gone(identity, id);
    }
}
