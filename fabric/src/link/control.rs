//! The dialling side of the control stream: publish and withdraw.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::BytesMut;
use keel_certs::ServiceId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::drain::Drain;
use crate::quic::{Connection, RecvStream, SendStream};
use crate::wire::{CloseCode, Message, MessageDecoder, Offer, Protocol, RefuseCode, VERSION};

/// Requests that wait for the stream.
const QUEUE: usize = 64;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Why a publication was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The router said no.
    #[error("the router refused: {code}: {text}")]
    Refused {
        /// Why.
        code: RefuseCode,
        /// In words.
        text: String,
    },
    /// The router did not answer in time.
    #[error("the router did not answer in time")]
    NoAnswer,
    /// The connection ended.
    #[error("the connection to the router ended")]
    Lost,
}

type Outcome = Result<(), (RefuseCode, String)>;

struct Request {
    message: Message,
    id: u64,
    answer: oneshot::Sender<Outcome>,
}

/// A handle on a connection's control stream; the stream ends with it.
#[derive(Debug)]
pub(crate) struct Control {
    requests: mpsc::Sender<Request>,
    next_id: std::sync::atomic::AtomicU64,
    answer_time: Duration,
    /// The router has said hello.
    greeted: CancellationToken,
    /// Aborted when the handle is dropped. The lock only makes the handle shareable.
    _task: Mutex<JoinSet<()>>,
}

impl Control {
    /// Says hello and serves the stream in a task of its own.
    ///
    /// A connection whose control stream has ended is of no use: nobody would ever hear of a publication again. It is
    /// closed, and the next one has a stream of its own.
    pub(crate) fn start(
        connection: Connection,
        send: SendStream,
        recv: RecvStream,
        (instance, answer_time): (u64, Duration),
        drain: Drain,
    ) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        let greeted = CancellationToken::new();
        let heard = greeted.clone();
        task.spawn(async move {
            let ended = serve(send, recv, queue, (instance, drain), heard).await;
            if let Ended::ByRouter(why) = ended {
                connection.close(CloseCode::Protocol.to_wire(), why.as_bytes());
            }
        });
        Self {
            requests,
            next_id: 1.into(),
            answer_time,
            greeted,
            _task: Mutex::new(task),
        }
    }

    /// Waits until the router has said hello; for ever if it never does. Cancel safe.
    pub(crate) async fn greeted(&self) {
        self.greeted.cancelled().await;
    }

    /// A number for a publication, by which it is withdrawn.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Publishes under a number of [`next_id`](Self::next_id). Without an answer it may stand nevertheless.
    pub(crate) async fn publish(
        &self,
        id: u64,
        service: ServiceId,
        port: u16,
        protocol: Protocol,
        offer: Offer,
    ) -> Result<(), PublishError> {
        self.ask(
            id,
            Message::Publish {
                id,
                service,
                port,
                protocol,
                offer,
            },
        )
        .await
    }

    /// Withdraws a publication.
    pub(crate) async fn withdraw(&self, id: u64) -> Result<(), PublishError> {
        self.ask(id, Message::Withdraw { id }).await
    }

    async fn ask(&self, id: u64, message: Message) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests
                .send(Request {
                    message,
                    id,
                    answer,
                })
                .await
                .map_err(|_| PublishError::Lost)?;
            answered.await.map_err(|_| PublishError::Lost)
        };
        match tokio::time::timeout(self.answer_time, asked).await {
            Err(_) => Err(PublishError::NoAnswer),
            Ok(outcome) => outcome?.map_err(|(code, text)| PublishError::Refused { code, text }),
        }
    }
}

/// How a control stream ended.
enum Ended {
    /// Its handle was dropped.
    Unused,
    /// It was cut or finished, or what came on it cannot be read.
    ByRouter(String),
}

async fn serve(
    mut send: SendStream,
    mut recv: RecvStream,
    mut queue: mpsc::Receiver<Request>,
    (instance, drain): (u64, Drain),
    greeted: CancellationToken,
) -> Ended {
    let cut = || Ended::ByRouter("the control stream has ended".to_owned());
    let mut out = BytesMut::new();
    let software = concat!("keel-fabric ", env!("CARGO_PKG_VERSION")).to_owned();
    Message::Hello {
        version: VERSION,
        software,
        instance: Some(instance),
    }
    .encode(&mut out);
    let mut decoder = MessageDecoder::new();
    let mut answers = drain.answers();
    let mut waiting: HashMap<u64, oneshot::Sender<Outcome>> = HashMap::new();
    loop {
        if !out.is_empty() && send.write_chunk(out.split().freeze()).await.is_err() {
            return cut();
        }
        tokio::select! {
            request = queue.recv() => {
                let Some(Request { message, id, answer }) = request else { return Ended::Unused };
                message.encode(&mut out);
                waiting.insert(id, answer);
                // Those whose asker gave up would stay for ever if the router never answers.
                waiting.retain(|_, answer| !answer.is_closed());
            }
            answer = answers.next() => answer.encode(&mut out),
            chunk = recv.read_chunk(CHUNK) => {
                let Ok(Some(chunk)) = chunk else { return cut() };
                decoder.push(chunk);
                loop {
                    match decoder.next() {
                        Ok(Some(Message::Answer { id, outcome })) => {
                            if let Some(answer) = waiting.remove(&id) {
                                // The asker may have given up.
                                let _ = answer.send(outcome);
                            }
                        }
                        Ok(Some(Message::Drain)) => drain.begin(),
                        Ok(Some(Message::Hello { version, software, .. })) => {
                            tracing::debug!(version, software, "router says hello");
                            greeted.cancel();
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => {
                            tracing::warn!(%error, "the router's control stream cannot be read");
                            return Ended::ByRouter(error.to_string());
                        }
                    }
                }
            }
        }
    }
}
