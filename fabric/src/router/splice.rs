//! Copies chunks between two streams, both ways, without looking into them.

use std::future::poll_fn;

use bytes::Bytes;

use crate::meter::Meter;
use crate::quic::{ReadError, RecvStream, SendStream, WriteError};
use crate::wire::ResetCode;

/// Chunks moved at once.
const CHUNKS: usize = 32;

/// Both halves of a stream.
pub(super) type Stream = (SendStream, RecvStream);

/// Copies until both directions have ended.
///
/// A loss of either side cuts the other with `LEG_LOST`; an end of the flow never comes from here. Not cancel safe in
/// that a dropped future abandons both streams.
pub(super) async fn splice(near: Stream, far: Stream, up: &Meter, down: &Meter) {
    let ((mut near_send, mut near_recv), (mut far_send, mut far_recv)) = (near, far);
    let both = async {
        tokio::try_join!(
            copy(&mut near_recv, &mut far_send, up),
            copy(&mut far_recv, &mut near_send, down)
        )
        .map(drop)
    };
    if both.await.is_err() {
        let code = ResetCode::LegLost.to_wire();
        near_send.reset(code);
        far_send.reset(code);
        near_recv.stop(code);
        far_recv.stop(code);
    }
}

/// The stream or its connection is gone.
struct Cut;

async fn copy(from: &mut RecvStream, to: &mut SendStream, meter: &Meter) -> Result<(), Cut> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    loop {
        let count = match poll_fn(|cx| from.poll_read_chunks(cx, &mut chunks)).await {
            Ok(Some(count)) => count,
            Ok(None) => {
                to.finish();
                return Ok(());
            }
            Err(ReadError::Reset(_) | ReadError::Lost(_) | ReadError::Closed) => return Err(Cut),
        };
        meter.add(chunks[..count].iter().map(|chunk| chunk.len() as u64).sum());
        match to.write_all_chunks(&mut chunks[..count]).await {
            Ok(()) => {}
            // The reader has what it wants, as after a refusal. What it still sends must get through.
            Err(WriteError::Stopped(code)) => {
                from.stop(code);
                return Ok(());
            }
            Err(WriteError::Lost(_) | WriteError::Closed) => return Err(Cut),
        }
    }
}
