//! The application's socket and the flow.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Pump, tcp};
use crate::flow::State;

impl Pump {
    /// Bytes from the application into the flow.
    pub(super) fn poll_tcp_in(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(udp) = &mut self.udp {
            let has_leg = self.leg.is_some();
            return udp.poll_in(cx, &mut self.flow, has_leg, &mut self.pace.read);
        }
        if !self.read_open {
            return false;
        }
        let Some(socket) = &self.tcp else {
            return false;
        };
        let mut room = self.flow.writable();
        if room == 0 {
            return false;
        }
        if self.pace.read.is_limited() {
            // A turn is for bytes that are there.
            if socket.stream().poll_read_ready(cx).is_pending() {
                return false;
            }
            match self.pace.read.poll(cx, room) {
                Poll::Ready(allowed) => room = allowed,
                Poll::Pending => return false,
            }
        }
        let read = tcp::poll_read(socket.stream(), cx, room);
        self.pace.read.used(match &read {
            Poll::Ready(Ok(tcp::Read::Bytes(bytes))) => bytes.len(),
            _ => 0,
        });
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(tcp::Read::Bytes(bytes))) => self.flow.write(bytes),
            Poll::Ready(Ok(tcp::Read::End)) => {
                self.read_open = false;
                self.flow.finish();
            }
            Poll::Ready(Err(_)) => self.flow.abort(self.reset_code),
        }
        true
    }

    /// A reset of the application while its socket is not read: nothing else would show it.
    pub(super) fn poll_tcp_error(&mut self, cx: &mut Context<'_>) -> bool {
        let reads = self.read_open && self.flow.writable() > 0 && !self.pace.read.waits();
        if reads || self.flow.state().is_final() {
            return false;
        }
        let Some(socket) = &mut self.tcp else {
            return false;
        };
        if socket.poll_failed(cx).is_pending() {
            return false;
        }
        self.flow.abort(self.reset_code);
        true
    }

    /// Bytes from the flow to the application, and the end behind them.
    pub(super) fn poll_tcp_out(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(udp) = &mut self.udp {
            return udp.poll_out(cx, &mut self.flow, &mut self.pace.write);
        }
        let Some(socket) = &self.tcp else {
            return false;
        };
        let mut moved = false;
        while self.flow.readable().next().is_some() {
            let mut most = usize::MAX;
            if self.pace.write.is_limited() {
                let there = self.flow.readable().take(tcp::SLICES).map(Bytes::len);
                match self.pace.write.poll(cx, there.sum()) {
                    Poll::Ready(allowed) => most = allowed,
                    Poll::Pending => {
                        // The limit holds the bytes, not the application.
                        self.flow.linger(Instant::now());
                        return moved;
                    }
                }
            }
            let written = tcp::poll_write(socket.stream(), cx, self.flow.readable(), most);
            self.pace.write.used(match &written {
                Poll::Ready(Ok(count)) => *count,
                _ => 0,
            });
            match written {
                Poll::Pending => return moved,
                Poll::Ready(Ok(count)) => {
                    self.flow.consumed(count);
                }
                Poll::Ready(Err(error)) => {
                    // The kernel's word for a reset behind an end of file, where it is told of a reset for the first time.
                    self.read_rest(error.kind() == io::ErrorKind::BrokenPipe);
                    return true;
                }
            }
            moved = true;
        }
        if self.write_open && self.flow.at_eof() {
            self.write_open = false;
            moved = true;
            if tcp::end_write(socket.stream()).is_err() {
                // A shutdown takes no error from later reads.
                self.read_rest(true);
            }
        }
        if !self.write_open
            && let State::Aborting { code, .. } = *self.flow.state()
        {
            // The reset behind an end of file that was passed on.
            self.flow.abort(code);
            moved = true;
        }
        moved
    }

    /// The application has reset, as a failed write shows. What it sent before is still in the kernel and goes first.
    ///
    /// Without `ended` an end of file is no end: the write has eaten the reset that a read would have shown.
    pub(super) fn read_rest(&mut self, ended: bool) {
        while let Some(socket) = &self.tcp
            && self.read_open
            && self.flow.writable() > 0
        {
            match tcp::read_rest(socket.stream(), self.flow.writable()) {
                Ok(tcp::Read::Bytes(bytes)) => self.flow.write(bytes),
                Ok(tcp::Read::End) if ended => {
                    self.read_open = false;
                    self.flow.finish();
                }
                Ok(tcp::Read::End) | Err(_) => break,
            }
        }
        self.flow.abort(self.reset_code);
    }
}
