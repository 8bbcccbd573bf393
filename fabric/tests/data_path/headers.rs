//! First frames of legs, as a consumer's end writes them.

use bytes::Bytes;
use keel_fabric::consumer::Target;
use keel_fabric::wire::{FlowId, Generation, Open, Protocol, Resume, Role, Secret, VERSION};

/// The first OPEN of a new flow.
pub(crate) fn open(target: &Target) -> Open {
    Open {
        version: VERSION,
        flow: FlowId::random(),
        generation: Generation::FIRST,
        secret: Secret::random(),
        service: target.service.clone(),
        port: target.port,
        protocol: Protocol::Tcp,
        provider: target.provider.clone(),
        limit: 1000,
        max_datagram: 0,
        hops: 0,
        flags: 0,
        from: None,
        window: None,
        rest: Bytes::new(),
    }
}

/// The RESUME of the second leg of `open`, of which nothing has come yet.
pub(crate) fn resume(open: &Open) -> Resume {
    let generation = Generation(2);
    Resume {
        version: VERSION,
        flow: open.flow,
        generation,
        service: open.service.clone(),
        port: open.port,
        provider: open.provider.clone(),
        recv: 0,
        limit: 1000,
        proof: open.secret.prove(open.flow, generation, Role::Initiator),
        from: None,
        protocol: open.protocol,
        rest: Bytes::new(),
    }
}
