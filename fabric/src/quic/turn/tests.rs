use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

use super::*;

const SIZE: usize = 1000;

/// A socket that notes its sends: the segment's size and the bytes.
#[derive(Debug, Default)]
struct Noted {
    sends: Mutex<Vec<(Option<usize>, Vec<u8>)>>,
    full: AtomicBool,
    room: AtomicWaker,
}

impl Noted {
    fn sends(&self) -> Vec<(Option<usize>, Vec<u8>)> {
        std::mem::take(&mut *self.sends.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sizes(&self) -> Vec<usize> {
        self.sends().iter().map(|(_, bytes)| bytes.len()).collect()
    }

    fn has_room(&self, room: bool) {
        self.full.store(!room, Ordering::Release);
        self.room.wake();
    }
}

#[derive(Debug)]
struct Room(Arc<Noted>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.room.register(cx.waker());
        if self.0.full.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Noted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::Acquire) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let send = (transmit.segment_size, transmit.contents.to_vec());
        self.sends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(send);
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 1).into())
    }

    fn max_transmit_segments(&self) -> usize {
        64
    }
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn socket() -> (Arc<Noted>, Joining) {
    let noted = Arc::<Noted>::default();
    (Arc::clone(&noted), Joining(noted))
}

fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit {
        destination: (Ipv4Addr::LOCALHOST, 2).into(),
        ecn: None,
        contents,
        segment_size,
        src_ip: None,
    }
}

/// A turn of a driver that does this at each poll.
fn turn(driver: impl FnMut(&mut Context<'_>) -> Poll<()> + Send + 'static) -> Turn {
    Turn {
        driver: Box::pin(std::future::poll_fn(driver)),
        unsent: None,
    }
}

fn poll(turn: &mut Turn) -> (Poll<()>, bool) {
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    let polled = Pin::new(turn).poll(&mut Context::from_waker(&waker));
    (polled, woken.0.load(Ordering::Acquire))
}

#[test]
fn alike_datagrams_leave_in_one_send_and_a_shorter_one_ends_it() {
    let (noted, socket) = socket();
    let mut driver = turn(move |_| {
        socket
            .try_send(&transmit(&[1; 3 * SIZE], Some(SIZE)))
            .unwrap();
        socket.try_send(&transmit(&[2; SIZE], None)).unwrap();
        socket.try_send(&transmit(&[3; 40], None)).unwrap();
        socket.try_send(&transmit(&[4; SIZE], None)).unwrap();
        Poll::Pending
    });
    assert!(poll(&mut driver).0.is_pending());
    let sends = noted.sends();
    let [(first, joined), (second, alone)] = sends.as_slice() else {
        panic!("{} sends", sends.len());
    };
    assert_eq!((*first, *second), (Some(SIZE), None));
    let whole = [vec![1; 3 * SIZE], vec![2; SIZE], vec![3; 40]].concat();
    assert_eq!((joined, alone), (&whole, &vec![4; SIZE]));
}

#[test]
fn what_is_not_alike_leaves_apart_and_in_order() {
    let (noted, socket) = socket();
    let mut driver = turn(move |_| {
        let plain = transmit(&[0; SIZE], None);
        let elsewhere = Transmit {
            destination: (Ipv4Addr::LOCALHOST, 3).into(),
            ..transmit(&[0; SIZE - 1], None)
        };
        let marked = Transmit {
            ecn: Some(EcnCodepoint::Ce),
            ..transmit(&[0; SIZE - 2], None)
        };
        let from = Transmit {
            src_ip: Some(Ipv4Addr::LOCALHOST.into()),
            ..transmit(&[0; SIZE - 3], None)
        };
        // A probe for a larger packet size.
        let longer = transmit(&[0; SIZE + 1], None);
        for one in [&plain, &elsewhere, &marked, &from, &longer] {
            socket.try_send(one).unwrap();
        }
        Poll::Pending
    });
    assert!(poll(&mut driver).0.is_pending());
    assert_eq!(
        noted.sizes(),
        [SIZE, SIZE - 1, SIZE - 2, SIZE - 3, SIZE + 1]
    );
}

#[test]
fn no_send_is_larger_than_the_kernel_takes() {
    let (noted, socket) = socket();
    let mut done = false;
    let mut driver = turn(move |_| {
        if std::mem::replace(&mut done, true) {
            return Poll::Pending;
        }
        for _ in 0..6 {
            socket
                .try_send(&transmit(&[0; 14_520], Some(1452)))
                .unwrap();
        }
        for _ in 0..13 {
            socket.try_send(&transmit(&[0; 100], Some(10))).unwrap();
        }
        Poll::Pending
    });
    assert!(poll(&mut driver).0.is_pending());
    assert_eq!(noted.sizes(), [4 * 14_520, 2 * 14_520, 600, 600, 100]);
}

#[test]
fn a_driver_that_its_bound_stopped_goes_on_in_the_same_turn() {
    let (noted, socket) = socket();
    let mut left = 50;
    let mut driver = turn(move |cx| {
        let now = left.min(DRIVER_BOUND);
        for _ in 0..now {
            socket.try_send(&transmit(&[0; SIZE], None)).unwrap();
        }
        left -= now;
        if now == DRIVER_BOUND {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    });
    assert!(poll(&mut driver).0.is_pending());
    assert_eq!(noted.sizes(), [50 * SIZE]);
}

#[test]
fn outside_of_a_turn_everything_leaves_at_once() {
    let (noted, socket) = socket();
    socket.try_send(&transmit(&[0; 1], None)).unwrap();
    socket.try_send(&transmit(&[0; 1], None)).unwrap();
    assert_eq!(noted.sizes(), [1, 1]);
}

/// As the implementation does: what the socket does not take is tried again, and nothing else before it.
#[test]
fn a_full_socket_loses_and_repeats_nothing() {
    let (noted, socket) = socket();
    let mut next = 0_u8;
    let mut driver = turn(move |_| {
        while next < 100 {
            if socket.try_send(&transmit(&[next; SIZE], None)).is_err() {
                break;
            }
            next += 1;
        }
        Poll::Pending
    });
    noted.has_room(false);
    assert!(poll(&mut driver).0.is_pending());
    assert!(poll(&mut driver).0.is_pending());
    assert_eq!(noted.sizes(), [0; 0]);
    let waiting = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&waiting));
    assert!(
        Pin::new(&mut driver)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    assert!(!waiting.0.load(Ordering::Acquire));
    noted.has_room(true);
    assert!(waiting.0.load(Ordering::Acquire), "woken by the room");
    assert!(poll(&mut driver).0.is_pending());
    let sends = noted.sends();
    let datagrams = sends.iter().flat_map(|(_, bytes)| bytes.chunks(SIZE));
    let numbers: Vec<u8> = datagrams.map(|datagram| datagram[0]).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<u8>>());
}

#[test]
fn a_driver_that_panics_leaves_nothing_to_others() {
    let (noted, socket) = socket();
    let socket = Arc::new(socket);
    let theirs = Arc::clone(&socket);
    let mut driver = turn(move |_| {
        theirs.try_send(&transmit(&[0; SIZE], None)).unwrap();
        panic!("on purpose")
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| poll(&mut driver)));
    assert!(panicked.is_err());
    assert_eq!(noted.sizes(), [0; 0]);
    socket.try_send(&transmit(&[0; 1], None)).unwrap();
    assert_eq!(noted.sizes(), [1]);
}
