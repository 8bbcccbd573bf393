//! The lines of a body that comes in pieces.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::http::{Body, BoxError};

/// Splits a body into lines.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to have no line end.
    searched: usize,
    max: usize,
}

/// Why there is no further line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    #[error("{0}")]
    Broken(BoxError),
    #[error("the body ended within a line")]
    Cut,
}

impl Lines {
    /// Lines of at most `max` bytes.
    pub(super) fn new(body: Body, max: usize) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
            max,
        }
    }

    /// The next line without its end; `None` behind the last one. Empty lines are skipped. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.max {
                return Err(LineError::TooLong(self.max));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(LineError::Broken(error)),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(LineError::Cut),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn pieces(pieces: &'static [&'static str]) -> Body {
        let frames = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
        StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn lines_come_out_whole_however_they_are_cut() {
        let mut lines = Lines::new(pieces(&["on", "e\ntw", "o\n\n", "three\n"]), 100);
        for expected in ["one", "two", "three"] {
            assert_eq!(lines.next().await.unwrap().unwrap(), expected);
        }
        assert!(lines.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_cut_line_and_an_endless_line_are_errors() {
        assert!(matches!(
            Lines::new(pieces(&["half"]), 100).next().await,
            Err(LineError::Cut)
        ));
        assert!(matches!(
            Lines::new(pieces(&["123456", "7890"]), 5).next().await,
            Err(LineError::TooLong(5))
        ));
    }
}
