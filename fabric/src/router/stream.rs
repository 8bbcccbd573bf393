//! What happens to one leg at the router, top to bottom.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use keel_certs::Subject;
use tokio::time::Instant;

use super::Shared;
use super::answers::Asked;
use super::clients::Client;
use super::datagrams::Beside;
use super::held::Held;
use super::identities::Allowance;
use super::park;
use super::route::{Next, Request, ServiceKey};
use super::splice::{Side, Spliced, Stream, splice};
use crate::leg::{Header, HeaderError, IncomingLeg};
use crate::metrics::CodeLabels;
use crate::pace::Pace;
use crate::provider::terminator::Via;
use crate::quic::{Connection, RecvStream, SendStream};
use crate::turns::Crowded;
use crate::wire::{
    Frame, Generation, MAX_HEADER, MAX_HEADER_FRAME, Open, Protocol, RefuseCode, ResetCode,
};

/// What came of a leg, as far as its connection has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It had a header.
    Served,
    /// It was cut without a byte.
    Empty,
}

/// Serves one stream that `client` opened.
///
/// The header is read and stamped, a provider's connection is found, and from then on bytes are copied. Legs of known flows
/// go before new ones, and so many a second. A refusal is answered at once; a RESUME or a repeated OPEN that finds no provider
/// now waits a moment for it, and is then cut with `LEG_LOST`, because the provider may still come back. A router that stops
/// takes neither.
pub(super) async fn serve(
    shared: Arc<Shared>,
    client: Arc<Client>,
    allowance: Allowance,
    send: SendStream,
    recv: RecvStream,
) -> Outcome {
    let mut leg = match IncomingLeg::read(send, recv, shared.limits.header()).await {
        Ok(leg) => leg,
        Err(error) => {
            tracing::debug!(identity = %client.identity, %error, "stream without a header");
            if let Some(limit) = error.limit() {
                shared.metrics.hit(limit);
            }
            return if matches!(error, HeaderError::Empty) {
                Outcome::Empty
            } else {
                Outcome::Served
            };
        }
    };
    let _passage = shared.drain.leg(client.id);
    let from = stamp(&mut leg.header, &client.identity);
    let turn = turn(&shared, &allowance, &leg.header).await;
    let next = match turn.and_then(|()| admit(&shared, &client, &mut leg.header)) {
        Ok(()) => find(&shared, &client, &allowance, &request(&leg.header)).await,
        Err(refusal) => Err(refusal),
    };
    match next {
        Ok(Next::Own(backend)) => {
            let passing = Some(
                shared
                    .clients
                    .passing(&key(&leg.header), &client, None, false),
            );
            let via = Via {
                from,
                provider: shared.subject.clone(),
                router: shared.node.clone(),
                drain: None,
                passing,
                limit: Some(allowance.limit),
            };
            shared.own.take(leg, via, backend).await;
        }
        Ok(Next::Provider(provider)) => {
            forward(&shared, &client, &provider, allowance, leg).await;
        }
        Err((code, text)) => refuse(&shared, &client, leg, code, text).await,
    }
    Outcome::Served
}

/// Writes the initiator's identity into the header: the peer's own, unless the peer is a node, which did so before.
fn stamp(header: &mut Header, peer: &Subject) -> Subject {
    let from = match header {
        Header::Open(open) => &mut open.from,
        Header::Resume(resume) => &mut resume.from,
    };
    match from {
        Some(before) if peer.is_node() => before.clone(),
        _ => {
            *from = Some(peer.clone());
            peer.clone()
        }
    }
}

/// Decides where a leg goes; only one of a flow that may be known already waits for that.
async fn find(
    shared: &Shared,
    client: &Client,
    allowance: &Allowance,
    request: &Request<'_>,
) -> Result<Next<Arc<Client>>, (RefuseCode, String)> {
    let route = || shared.table().route(request);
    match route() {
        Err(_) if request.known => {
            let next = park::wait(shared, client, allowance, || route().ok()).await;
            next.map_or_else(route, Ok)
        }
        decided => decided,
    }
}

/// Waits for the leg's turn: those of known flows come first, and do not count as new ones of their identity. One that
/// brings more of them than its share has what others leave.
async fn turn(
    shared: &Shared,
    allowance: &Allowance,
    header: &Header,
) -> Result<(), (RefuseCode, String)> {
    if header.is_of_known_flow() {
        let turn = if allowance.known(&shared.limits, Instant::now()) {
            shared.resumes.take().await
        } else {
            shared.resumes.take_spare().await
        };
        turn.map_err(|Crowded| (RefuseCode::Limit, "too many flows come back".to_owned()))?;
    } else if allowance.open() {
        shared.resumes.behind().await;
    } else {
        shared.metrics.hit("opens");
        let text = "too many new flows of this identity".to_owned();
        return Err((RefuseCode::Limit, text));
    }
    Ok(())
}

/// Counts this hop; a router that stops refuses it.
fn admit(
    shared: &Shared,
    client: &Client,
    header: &mut Header,
) -> Result<(), (RefuseCode, String)> {
    if shared.drain.has_begun() {
        return Err((RefuseCode::Draining, "this router stops".to_owned()));
    }
    let Header::Open(open) = header else {
        return Ok(());
    };
    open.hops = open.hops.saturating_add(1);
    lower(open, &client.connection);
    if open.hops > shared.limits.hops {
        shared.metrics.hit("hops");
        return Err((
            RefuseCode::TooManyHops,
            format!("more than {} routers", shared.limits.hops),
        ));
    }
    Ok(())
}

/// A packet has to fit into the datagrams of every connection on the way.
fn lower(open: &mut Open, connection: &Connection) {
    if open.protocol == Protocol::Udp {
        open.max_datagram = open.max_datagram.min(connection.datagrams().max_packet());
    }
}

fn request(header: &Header) -> Request<'_> {
    match header {
        Header::Open(open) => Request {
            service: &open.service,
            port: open.port,
            protocol: open.protocol,
            provider: &open.provider,
            known: header.is_of_known_flow(),
        },
        Header::Resume(resume) => Request {
            service: &resume.service,
            port: resume.port,
            protocol: resume.protocol,
            provider: &resume.provider,
            known: true,
        },
    }
}

/// Under which service a leg is counted.
fn key(header: &Header) -> ServiceKey {
    let Request {
        service,
        port,
        protocol,
        ..
    } = request(header);
    ServiceKey {
        service: service.clone(),
        port,
        protocol,
    }
}

/// Only a first open can be refused here: after that the provider may have the flow, and only he may refuse it.
async fn refuse(
    shared: &Shared,
    client: &Client,
    leg: IncomingLeg,
    code: RefuseCode,
    text: String,
) {
    tracing::debug!(identity = %client.identity, %code, text, "refused");
    let labels = CodeLabels { code: code.name() };
    shared.metrics.router_refusals.get_or_create(&labels).inc();
    match &leg.header {
        Header::Open(open) if open.generation == Generation::FIRST => {
            leg.answer(&Frame::Refuse { code, text }).await;
        }
        Header::Open(_) | Header::Resume(_) => leg.cut(ResetCode::LegLost),
    }
}

/// The header as it goes on; an error if what this router wrote into it made it too long for whoever reads it next.
fn head(header: &Header) -> Result<Bytes, (RefuseCode, String)> {
    let mut head = BytesMut::new();
    header.encode(&mut head);
    if head.len() > MAX_HEADER_FRAME {
        let text = format!("with the name of who opened it the header is over {MAX_HEADER} bytes");
        return Err((RefuseCode::Limit, text));
    }
    Ok(head.freeze())
}

/// Opens a stream to the provider for a leg with this header; gives back the header as it goes on, too.
async fn reach(
    shared: &Shared,
    provider: &Client,
    header: &mut Header,
) -> Result<(Bytes, Stream), (RefuseCode, String)> {
    if let Header::Open(open) = header {
        lower(open, &provider.connection);
    }
    let head = head(header).inspect_err(|_| shared.metrics.hit("header_size"))?;
    let opened =
        tokio::time::timeout(shared.limits.header_time, provider.connection.open_bi()).await;
    let stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(lost)) => {
            let text = format!("the connection of {} is lost: {lost}", provider.identity);
            return Err((RefuseCode::NoProvider, text));
        }
        Err(_) => {
            shared.metrics.hit("streams");
            let text = format!("{} takes no more flows now", provider.identity);
            return Err((RefuseCode::Limit, text));
        }
    };
    if !header.is_of_known_flow() && provider.answers.is_silent() {
        // It was given nothing, so another one may be.
        let text = format!("{} does not answer", provider.identity);
        return Err((RefuseCode::NoProvider, text));
    }
    Ok((head, stream))
}

/// Opens a stream to the provider, sends the header and what came behind it, and copies from then on.
async fn forward(
    shared: &Shared,
    client: &Client,
    provider: &Client,
    allowance: Allowance,
    mut leg: IncomingLeg,
) {
    let Allowance { limit, holding, .. } = allowance;
    let (head, (mut far_send, mut far_recv)) = match reach(shared, provider, &mut leg.header).await
    {
        Ok(reached) => reached,
        Err((code, text)) => return refuse(shared, client, leg, code, text).await,
    };
    let known = leg.header.is_of_known_flow();
    let key = key(&leg.header);
    let resumed = matches!(leg.header, Header::Resume(_));
    let passing = shared
        .clients
        .passing(&key, client, Some(provider), resumed);
    let passing = Arc::new(passing);
    shared.metrics.router_legs.inc();
    // Legs of known flows are their ends' affair: they know how long they have been silent.
    let mut asked = (!known).then(|| provider.answers.ask());
    let IncomingLeg {
        header: _,
        decoder,
        mut send,
        mut recv,
    } = leg;
    let beside = (key.protocol == Protocol::Udp)
        .then(|| Beside::join(&send, &far_send, &passing, &limit, &shared.metrics));
    let mut chunks = vec![head];
    // It would keep all packets that came with it.
    let rest = decoder.into_rest();
    chunks.extend(rest.iter().map(|chunk| Bytes::copy_from_slice(chunk)));
    let length = chunks.iter().map(Bytes::len).sum();
    passing.up.add(length as u64);
    let mut ahead = Held::new(&holding);
    ahead.is_free();
    ahead.set(length);
    let cut = tokio::select! {
        // What goes at once goes first: who gives a leg up has said why, behind its open.
        biased;
        // If the far stream is gone already, the splice finds out and cuts the near one.
        _ = far_send.write_all_chunks(&mut chunks) => None,
        () = silent(&mut asked) => Some(ResetCode::ProviderSilent),
        _ = client.connection.closed() => Some(ResetCode::LegLost),
        // Who gives up a leg stops reading, too: a race that another one has won, a client that has gone.
        _ = send.stopped() => Some(ResetCode::LegLost),
    };
    drop(ahead);
    if let Some(code) = cut {
        // What was written may end within a frame, so nothing can follow it.
        for half in [&mut send, &mut far_send] {
            half.reset(code.to_wire());
        }
        for half in [&mut recv, &mut far_recv] {
            half.stop(code.to_wire());
        }
        shared.metrics.router_legs_cut.inc();
        passing.pair.reset(code.name());
        shared.metrics.router_legs.dec();
        return;
    }
    let near = Side {
        connection: &client.connection,
        stream: (send, recv),
    };
    let far = Side {
        connection: &provider.connection,
        stream: (far_send, far_recv),
    };
    let limits = Pace::between(&limit);
    let narrowed = async {
        match &beside {
            Some(beside) => beside.narrowed().await,
            None => std::future::pending().await,
        }
    };
    let spliced = tokio::select! {
        spliced = splice(near, far, (&passing.up, &passing.down), limits, &holding, asked) => spliced,
        // Dropped, both streams are cut, and the ends go on over another leg.
        () = narrowed => Spliced::Cut(ResetCode::LegLost),
    };
    match spliced {
        Spliced::Ended(None) => {}
        Spliced::Ended(Some(code)) => passing.pair.reset(code.name()),
        Spliced::Cut(code) => {
            shared.metrics.router_legs_cut.inc();
            passing.pair.reset(code.name());
        }
    }
    shared.metrics.router_legs.dec();
}

/// Waits until the provider that was asked is silent; for ever if none was.
async fn silent(asked: &mut Option<Asked<'_>>) {
    match asked {
        Some(asked) => poll_fn(|cx| asked.poll_silent(cx)).await,
        None => std::future::pending().await,
    }
}
