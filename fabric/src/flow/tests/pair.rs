use tokio::time::Instant;

use super::world::open;
use crate::flow::{Finished, Flow, FlowLimits, State};
use crate::wire::{Frame, Generation, Open, Proof, Resume};

/// Two ends with a perfect leg that is as slow as the test wants.
pub(super) struct Pair {
    pub(super) consumer: Flow,
    pub(super) provider: Option<Flow>,
    limits: FlowLimits,
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(FlowLimits::default())
    }

    pub(super) fn with(limits: FlowLimits) -> Self {
        Self {
            consumer: Flow::initiate(other_open(), limits),
            provider: None,
            limits,
            now: Instant::now(),
        }
    }

    pub(super) fn provider(&mut self) -> &mut Flow {
        self.provider.as_mut().expect("OPEN arrived")
    }

    pub(super) fn states(&mut self) -> (State, State) {
        (
            self.consumer.state().clone(),
            self.provider().state().clone(),
        )
    }

    pub(super) fn accepted(&mut self) {
        self.exchange();
        self.provider().accept(0);
        self.exchange();
    }

    /// As [`accepted`](Self::accepted), with a provider of other limits.
    pub(super) fn exchange_first(&mut self, provider: FlowLimits) {
        let limits = std::mem::replace(&mut self.limits, provider);
        self.accepted();
        self.limits = limits;
    }

    pub(super) fn sent_by_consumer(&mut self) -> Vec<Frame> {
        let generation = self.consumer.generation();
        std::iter::from_fn(|| self.consumer.transmit(generation, self.now)).collect()
    }

    pub(super) fn deliver(&mut self, frame: Frame) {
        let (now, limits) = (self.now, self.limits);
        match (&mut self.provider, frame) {
            (provider @ None, Frame::Open(open)) => {
                *provider = Some(Flow::terminate(&open, limits))
            }
            (Some(provider), Frame::Resume(resume)) => {
                provider.attach(&resume, now).expect("a good resume")
            }
            (Some(provider), frame) => {
                provider
                    .receive(provider.generation(), frame, now)
                    .expect("a good frame");
            }
            (None, frame) => panic!("{} before OPEN", frame.name()),
        }
    }

    /// Carries frames both ways until nothing moves.
    pub(super) fn exchange(&mut self) {
        self.exchange_until(|_| false);
    }

    /// As `exchange`; stops at the first frame for the consumer that `lost` picks, which is lost.
    pub(super) fn exchange_until(&mut self, lost: impl Fn(&Frame) -> bool) {
        loop {
            let frames = self.sent_by_consumer();
            let mut moved = !frames.is_empty();
            frames.into_iter().for_each(|frame| self.deliver(frame));
            let now = self.now;
            while let Some(provider) = &mut self.provider
                && let Some(frame) = provider.transmit(provider.generation(), now)
            {
                if lost(&frame) {
                    return;
                }
                moved = true;
                self.consumer
                    .receive(provider.generation(), frame, now)
                    .expect("a good frame");
            }
            if !moved {
                return;
            }
        }
    }

    pub(super) fn take_all(&mut self) -> Vec<u8> {
        let bytes = self
            .provider()
            .readable()
            .flat_map(|chunk| chunk.to_vec())
            .collect::<Vec<_>>();
        self.provider().consumed(bytes.len());
        bytes
    }

    pub(super) fn lose_leg(&mut self) {
        let now = self.now;
        self.consumer.leg_lost(self.consumer.generation(), now);
        let provider = self.provider();
        provider.leg_lost(provider.generation(), now);
    }

    /// Opens another leg and returns its header.
    pub(super) fn resume(&mut self) -> Resume {
        let generation = self.consumer.resume(self.now).expect("a leg is wanted");
        let Some(Frame::Resume(resume)) = self.consumer.transmit(generation, self.now) else {
            panic!("no RESUME")
        };
        self.deliver(Frame::Resume(resume.clone()));
        self.exchange();
        *resume
    }

    /// Opens another leg on which everything of the consumer is lost behind the answer to its header.
    pub(super) fn resume_and_lose(&mut self) {
        let generation = self.consumer.resume(self.now).expect("a leg is wanted");
        for frame in self.sent_by_consumer() {
            self.deliver(frame);
        }
        let now = self.now;
        while let Some(frame) = self.provider().transmit(generation, now) {
            self.consumer
                .receive(generation, frame, now)
                .expect("a good frame");
        }
        let lost = self.sent_by_consumer();
        assert!(matches!(lost.last(), Some(Frame::Abort { .. })), "{lost:?}");
        self.lose_leg();
    }

    /// What an attacker who knows everything but the secret could make.
    pub(super) fn forged_resume(&self) -> Resume {
        let Open {
            version,
            service,
            port,
            provider,
            ..
        } = other_open();
        let (flow, proof) = (self.consumer.id(), Proof::from_bytes([1; 32]));
        Resume {
            version,
            flow,
            generation: Generation(2),
            service,
            port,
            provider,
            recv: 0,
            limit: 0,
            proof,
            from: None,
            protocol: crate::wire::Protocol::Tcp,
            rest: bytes::Bytes::new(),
        }
    }

    pub(super) fn finished(&mut self) -> Finished {
        let now = self.now;
        self.provider().finished(now).expect("the flow is over")
    }
}

/// An OPEN with an id of its own.
pub(super) fn other_open() -> Open {
    open(&mut super::legs::Random(rand::random()))
}
